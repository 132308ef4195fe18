//! How a container that starts from cold disk fills the page cache, from the start of its view on; and the plot of it.
//!
//! What is drawn is what lies in the page cache for all that this run has started. Where nothing is asked for ahead,
//! that is what was asked for until then, with the kernel's own reading ahead. So the curve of a view that has learnt
//! against that of one that has not is: bytes present against bytes asked for.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::fault::{Fault, Outcome};
use crate::page_cache::PageCache;
use crate::plot::{COLOURS, escaped};
use crate::report::{Report, figure};
use crate::samples::float;

/// How often it is looked.
const PERIOD: Duration = Duration::from_millis(5);

/// One container's start.
#[derive(Debug)]
pub(crate) struct Timeline {
    /// The column, by its place.
    pub(crate) column: usize,
    /// When it was looked, from the start of the view, and the bytes of page cache added until then.
    pub(crate) points: Vec<(Duration, u64)>,
    /// When the view was ready.
    pub(crate) ready: Duration,
    /// When the container was up.
    pub(crate) up: Duration,
}

/// Does `work`, and looks at the page cache meanwhile, from `begin` on.
pub(crate) fn watch<T>(
    page_cache: &PageCache,
    begin: Instant,
    work: impl FnOnce() -> T,
) -> Outcome<(T, Vec<(Duration, u64)>)> {
    let over = AtomicBool::new(false);
    let before = page_cache.bytes()?;
    thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut points = Vec::new();
            while !over.load(Ordering::Relaxed) {
                match page_cache.bytes() {
                    Ok(bytes) => points.push((begin.elapsed(), bytes.saturating_sub(before))),
                    Err(fault) => return Err(fault),
                }
                thread::sleep(PERIOD);
            }
            Ok(points)
        });
        let done = work();
        over.store(true, Ordering::Relaxed);
        let points =
            looking.join().unwrap_or_else(|_| Err(Fault::new("the thread that watches memory panicked")))?;
        Ok((done, points))
    })
}

const LEFT: f64 = 60.0;
const TOP: f64 = 70.0;
const WIDTH: f64 = 780.0;
const HEIGHT: f64 = 360.0;
const MIB: f64 = 1024.0 * 1024.0;
const LINES: u32 = 5;

/// The picture as SVG; None if no container was started from cold disk.
pub(crate) fn svg(report: &Report<'_>, timelines: &[Timeline]) -> Option<String> {
    // Each is drawn until the last container is up: what comes behind is its end.
    let last = timelines.iter().map(|line| line.up.as_secs_f64()).reduce(f64::max)?;
    let within = |line: &Timeline| -> Vec<(f64, f64)> {
        let points = line.points.iter().filter(|(at, _)| *at <= line.up);
        points.map(|(at, bytes)| (at.as_secs_f64(), float(*bytes) / MIB)).collect()
    };
    let most = timelines.iter().flat_map(within).map(|(_, size)| size).fold(1.0, f64::max);
    let x = |at: f64| LEFT + WIDTH * at / last.max(1e-3);
    let y = |size: f64| TOP + HEIGHT * (1.0 - size / most);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:.0} {:.0}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"14\">A container from cold disk: MiB in the page cache, by seconds \
         from the start of its view</text>\n<text x=\"10\" y=\"36\">{}; dashed: the view is ready; dot: the container \
         is up</text>\n",
        LEFT + WIDTH + 40.0,
        TOP + HEIGHT + 40.0,
        escaped(&format!("{}, Linux {}, {}", report.machine.date, report.machine.kernel, report.machine.cpu)),
    );
    for line in 0..=LINES {
        let part = f64::from(line) / f64::from(LINES);
        let (size, at) = (most * part, last * part);
        // Writing to a String cannot fail.
        writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            LEFT + WIDTH,
            y(size),
            y(size),
            LEFT - 6.0,
            y(size) + 4.0,
            figure(size),
            x(at),
            TOP + HEIGHT + 18.0,
            figure(at),
        )
        .ok();
    }
    let mut label = 10.0;
    for line in timelines {
        let column = report.columns.get(line.column).map_or("", |column| &column.name);
        // The bind mount, which the other picture leaves out, is drawn in black.
        let colour = match line.column.checked_sub(1) {
            Some(place) => COLOURS.iter().cycle().nth(place).unwrap_or(&"#000000"),
            None => "#000000",
        };
        let name = escaped(column);
        writeln!(
            out,
            "<rect x=\"{label:.0}\" y=\"46\" width=\"10\" height=\"10\" fill=\"{colour}\"/>\
             <text x=\"{:.0}\" y=\"55\">{name}</text>",
            label + 14.0
        )
        .ok();
        label = name.chars().fold(label + 34.0, |label, _| label + 6.5);
        let points: Vec<(f64, f64)> = within(line);
        let path: Vec<String> =
            points.iter().map(|(at, size)| format!("{:.1},{:.1}", x(*at), y(*size))).collect();
        let (ready, up) = (x(line.ready.as_secs_f64()), x(line.up.as_secs_f64()));
        let top = points.last().map_or(0.0, |(_, size)| *size);
        writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>\
             <line x1=\"{ready:.1}\" x2=\"{ready:.1}\" y1=\"{TOP}\" y2=\"{:.1}\" stroke=\"{colour}\" \
             stroke-dasharray=\"3,3\"/><circle cx=\"{up:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"/>",
            path.join(" "),
            TOP + HEIGHT,
            y(top),
        )
        .ok();
    }
    out.push_str("</svg>\n");
    Some(out)
}
