//! The table of one client thread as a picture: a group of bars for each row, a logarithmic scale, the bind mount
//! as the line at 1.

use std::fmt::Write;

use crate::report::{ROWS, Report, figure};

const LEFT: f64 = 230.0;
const WIDTH: f64 = 720.0;
const TOP: f64 = 70.0;
const BAR: f64 = 11.0;
const GAP: f64 = 9.0;
/// Bars begin at this ratio, the smallest that is worth telling apart.
const LEAST: f64 = 0.5;
/// Told apart also by those who see few colours.
pub(crate) const COLOURS: [&str; 7] =
    ["#0072b2", "#56b4e9", "#e69f00", "#cc79a7", "#009e73", "#d55e00", "#999999"];

/// The picture as SVG.
pub(crate) fn svg(report: &Report<'_>) -> String {
    let columns = report.columns.len();
    let groups: Vec<(&str, Vec<Option<f64>>)> = ROWS
        .iter()
        .filter_map(|row| {
            let bind = report.samples.median(row.name, 1, 0)?;
            let ratio = |column| Some(report.samples.median(row.name, 1, column)? / bind);
            Some((row.name, (1..columns).map(ratio).collect()))
        })
        .collect();
    let largest =
        groups.iter().flat_map(|(_, ratios)| ratios.iter().flatten()).fold(2.0_f64, |a, b| a.max(*b));
    let scale = |ratio: f64| WIDTH * (ratio.max(LEAST) / LEAST).ln() / (largest / LEAST).ln();
    let bars: f64 = groups.iter().map(|(_, ratios)| ratios.iter().fold(GAP, |sum, _| sum + BAR)).sum();
    let height = TOP + bars + 30.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:.0} {height:.0}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"14\">Time of one operation, times the bind mount \
         (one client thread, less is better)</text>\n<text x=\"10\" y=\"36\">{}</text>\n",
        LEFT + WIDTH + 60.0,
        escaped(&format!("{}, Linux {}, {}", report.machine.date, report.machine.kernel, report.machine.cpu)),
    );
    let mut x = 10.0;
    for (column, colour) in report.columns.iter().skip(1).zip(COLOURS.iter().cycle()) {
        let name = escaped(&column.name);
        write!(out, "<rect x=\"{x:.0}\" y=\"46\" width=\"10\" height=\"10\" fill=\"{colour}\"/>").ok();
        writeln!(out, "<text x=\"{:.0}\" y=\"55\">{name}</text>", x + 14.0).ok();
        x = name.chars().fold(x + 34.0, |x, _| x + 6.5);
    }
    let mut mark = 1.0;
    while mark <= largest {
        let at = LEFT + scale(mark);
        let colour = if mark > 1.0 { "#dddddd" } else { "#333333" };
        writeln!(
            out,
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{:.1}\" stroke=\"{colour}\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{mark}</text>",
            height - 26.0,
            height - 12.0,
        )
        .ok();
        mark *= 2.0;
    }
    let mut y = TOP + GAP / 2.0;
    for (name, ratios) in groups {
        let baseline = y + BAR;
        writeln!(out, "<text x=\"{:.0}\" y=\"{baseline:.1}\" text-anchor=\"end\">{name}</text>", LEFT - 8.0)
            .ok();
        for (ratio, colour) in ratios.iter().zip(COLOURS.iter().cycle()) {
            if let Some(ratio) = ratio {
                let length = scale(*ratio);
                writeln!(
                    out,
                    "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>\
                     <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"9\">{}</text>",
                    BAR - 1.0,
                    LEFT + length + 3.0,
                    y + BAR - 2.5,
                    figure(*ratio),
                )
                .ok();
            }
            y += BAR;
        }
        y += GAP;
    }
    out.push_str("</svg>\n");
    out
}

/// Text of an element.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
