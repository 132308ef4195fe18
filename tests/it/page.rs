//! The page of `--dump-closure=html` in a real browser: it says what the store says, to the mouse, to the keys and to a screen reader.
//!
//! What it says is compared with `nix-store --query` for the small closure, and with the lists that the large one was made of.
//!
//! `NSF_PICTURES=DIR` saves the large one and pictures of it there; docs/closure.png is one of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use nix_store_fs::closure::{Closure, dump};
use nix_store_fs::values::{PathInfo, Size, StorePath};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::util::browser::Page;
use crate::util::fixture::Fixture;
use crate::util::load::say;
use crate::util::made::{Made, PATHS};
use crate::util::program::Program;
use crate::util::random::{Random, seed};
use crate::util::store::{Member, NixStore};

/// What its page may have.
const PAGE_MAX: u64 = 3 << 20;
/// Contrast of text, at least (WCAG 2.2, criterion 1.4.3), and of what is no text (1.4.11).
const CONTRAST_OF_TEXT: f64 = 4.5;
const CONTRAST_OF_MARKS: f64 = 3.0;

/// A page on the disk.
struct Saved {
    file: PathBuf,
    _dir: TempDir,
}

fn save(program: Program) -> Saved {
    let dir = crate::util::scratch();
    let file = dir.path().join("closure.html");
    let (status, stderr) = program.arg("--dump-closure=html").run_into(fs::File::create(&file).unwrap());
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
    Saved { file, _dir: dir }
}

/// The large closure, its store and its page.
fn large(what: &str) -> (Made, Saved, Random) {
    let mut random = Random::new(seed(what));
    let made = Made::generated(&mut random);
    let store = NixStore::new();
    made.register(&store);
    let saved = save(Program::on(&store).args(["--system", &format!("/nix/store/{}", made.names[0])]));
    (made, saved, random)
}

/// What the page shows of the selected path, as places in `made`.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    path: String,
    own: u64,
    alone: (u64, String),
    references: BTreeSet<usize>,
    referrers: BTreeSet<usize>,
    chain: Vec<usize>,
}

fn shown(page: &mut Page, made: &Made) -> Shown {
    page.evaluate("document.querySelectorAll('#facts .block > button').forEach((button) => button.click())");
    let facts = page.evaluate(
        "(() => { const all = (selector) => [...document.querySelectorAll('#facts ' + selector)]; \
         const links = (id) => all('#' + id + ' a').map((link) => link.hash.slice(1)); \
         return { path: all('.full')[0].textContent, numbers: all('.stats data').map((number) => number.value), \
         paths: all('.stats .second')[0].textContent, \
         references: links('references'), referrers: links('referrers'), chain: links('chain') }; })()",
    );
    let places = |list: &Value| -> Vec<usize> {
        list.as_array().unwrap().iter().map(|name| made.place(name)).collect()
    };
    let number = |place: usize| facts["numbers"][place].as_str().unwrap().parse().unwrap();
    let [references, referrers] = ["references", "referrers"].map(|list| {
        let list = places(&facts[list]);
        let set: BTreeSet<usize> = list.iter().copied().collect();
        assert_eq!(list.len(), set.len(), "one is shown twice");
        set
    });
    Shown {
        path: facts["path"].as_str().unwrap().to_owned(),
        own: number(0),
        alone: (number(1), facts["paths"].as_str().unwrap().to_owned()),
        references,
        referrers,
        chain: places(&facts["chain"]),
    }
}

/// Checks what the page shows of the selected path against what it is.
fn check_shown(page: &mut Page, made: &Made, member: usize) {
    let shown = shown(page, made);
    let name = &made.names[member];
    let (bytes, paths) = made.alone(member);
    let paths = match paths {
        1 => "1 path".to_owned(),
        1000.. => format!("{},{:03} paths", paths / 1000, paths % 1000),
        _ => format!("{paths} paths"),
    };
    assert_eq!(shown.path, format!("/nix/store/{name}"));
    assert_eq!((shown.own, &shown.alone), (made.sizes[member], &(bytes, paths)), "{name}");
    assert_eq!(shown.references, made.references[member], "{name}");
    assert_eq!(shown.referrers, made.referrers(member), "{name}");
    // Any of the shortest ones is right. None is shown of the root.
    let distance = made.distances(None)[&member];
    assert_eq!(shown.chain.len(), if member == 0 { 0 } else { distance + 1 }, "{name}");
    assert!(member == 0 || (shown.chain[0], shown.chain[distance]) == (0, member), "{shown:?}");
    assert!(shown.chain.windows(2).all(|pair| made.references[pair[0]].contains(&pair[1])), "{shown:?}");
}

/// Lets the search find a path, and selects the first one that it found.
fn search(page: &mut Page, text: &str) {
    page.click_on("#search");
    page.evaluate("document.getElementById('search').select()");
    page.type_in(text);
    page.press("Enter");
}

fn selected(page: &mut Page) -> Value {
    page.evaluate("data.names[selected]")
}

#[test]
fn the_page_says_of_each_path_what_nix_store_says() {
    need!(Nix, Chromium);
    let fixture = Fixture::new();
    let made = Made::asked(&fixture.store, &fixture.system.path);
    let saved = save(fixture.program());
    let mut page = Page::open(&saved.file, 1280, 800);
    assert_eq!(page.text("document.title"), "Closure of demo-system");
    assert_eq!(selected(&mut page), json!(made.names[0]));
    // Sizes read as those that the program prints.
    let mut random = Random::new(seed("sizes"));
    let sizes = [0, 1023, 1024, 1_048_524, 1_048_525, 1 << 30].into_iter();
    let sizes: Vec<u64> =
        sizes.chain((0..200).map(|number| (random.next() >> 11) >> (number % 50))).collect();
    let texts: Vec<String> = sizes.iter().map(|bytes| Size(*bytes).to_string()).collect();
    assert_eq!(page.evaluate(&format!("{}.map(sizeText)", json!(sizes))), json!(texts));
    for member in 0..made.names.len() {
        search(&mut page, &made.names[member]);
        check_shown(&mut page, &made, member);
    }
    assert_eq!((page.complaints(), page.requests()), (Vec::new(), 1));
}

#[test]
fn the_page_of_a_large_closure_is_small_and_says_what_it_is() {
    need!(Nix, Chromium);
    let (made, saved, mut random) = large("page");
    let size = fs::metadata(&saved.file).unwrap().len();
    assert!(size < PAGE_MAX, "{size} bytes");
    let mut page = Page::open(&saved.file, 1440, 900);
    let times = page.evaluate(
        "(() => { const begun = performance.now(); for (let times = 0; times < 20; times += 1) map.draw(); \
         const loaded = performance.getEntriesByType('navigation')[0].loadEventStart; \
         return [Math.round(loaded), Math.round((performance.now() - begun) / 20)]; })()",
    );
    say(&format!("{PATHS} paths: {size} bytes, loaded after {} ms, drawn in {} ms", times[0], times[1]));
    assert!(page.text("document.getElementById('summary').textContent").starts_with("5,000 paths, "));
    for member in [0, PATHS - 1].into_iter().chain((0..10).map(|_| random.below(PATHS))) {
        search(&mut page, &made.names[member]);
        check_shown(&mut page, &made, member);
    }
    // A part of a name, in the other case, and a second word.
    page.evaluate("document.getElementById('search').select()");
    page.type_in("GLIBC 2.4");
    assert_eq!(page.text("document.getElementById('found').textContent"), "1 of 5,000 paths");
    // A link leads on, and Back leads back.
    let last = selected(&mut page);
    let linked = page.text("document.querySelector('#referrers a').hash.slice(1)");
    page.click_on("#referrers a");
    page.wait_until(&format!("data.names[selected] === {}", json!(linked)));
    check_shown(&mut page, &made, made.place(&json!(linked)));
    page.evaluate("history.back()");
    page.wait_until(&format!("data.names[selected] === {last}"));
    assert_eq!((page.complaints(), page.requests()), (Vec::new(), 1));
}

/// A box on the map.
#[derive(Debug, Clone, serde::Deserialize)]
struct Cell {
    kind: String,
    node: i64,
    weight: f64,
    depth: usize,
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

impl Cell {
    fn area(&self) -> f64 {
        self.width * self.height
    }

    fn holds(&self, other: &Self) -> bool {
        const NEARLY: f64 = 0.01;
        self.x <= other.x + NEARLY
            && self.y <= other.y + NEARLY
            && other.x + other.width <= self.x + self.width + NEARLY
            && other.y + other.height <= self.y + self.height + NEARLY
    }

    /// Where a click means this box and none in it.
    fn target(&self) -> (f64, f64) {
        let down = if self.kind == "group" { 10.0 } else { self.height / 2.0 };
        (self.x + self.width / 2.0, self.y + down)
    }
}

fn cells(page: &mut Page) -> Vec<Cell> {
    serde_json::from_value(page.evaluate("map.cells()")).unwrap()
}

/// A place on the map as one in the window.
fn in_window(page: &mut Page, (x, y): (f64, f64)) -> (f64, f64) {
    let map = page.evaluate("(() => { const box = document.getElementById('map').getBoundingClientRect(); return [box.x, box.y]; })()");
    (map[0].as_f64().unwrap() + x, map[1].as_f64().unwrap() + y)
}

#[test]
fn areas_on_the_map_are_sizes_and_a_click_selects_what_is_there() {
    need!(Nix, Chromium);
    let (made, saved, mut random) = large("map");
    let mut page = Page::open(&saved.file, 1440, 900);
    let cells = cells(&mut page);
    let names: Vec<String> = serde_json::from_value(page.evaluate("data.names")).unwrap();
    let place = |cell: &Cell| made.place(&json!(names[usize::try_from(cell.node).unwrap()]));

    // What stands in a box: side by side, in proportion, together all that goes with it.
    let groups: Vec<&Cell> = cells.iter().filter(|cell| cell.kind == "group").collect();
    assert!(groups.len() > 3, "{cells:?}");
    for group in &groups {
        let within: Vec<&Cell> =
            cells.iter().filter(|cell| cell.depth == group.depth + 1 && group.holds(cell)).collect();
        let total: f64 = within.iter().map(|cell| cell.weight).sum();
        assert!((total / group.weight - 1.0).abs() < 1e-9, "{group:?}: {total}");
        let area: f64 = within.iter().map(|cell| cell.area()).sum();
        for (at, cell) in within.iter().enumerate() {
            assert!((cell.area() / area - cell.weight / total).abs() < 1e-6, "{cell:?} in {group:?}");
            let overlaps = |other: &&&Cell| {
                let across = cell.x.max(other.x) + 0.01 < (cell.x + cell.width).min(other.x + other.width);
                across && cell.y.max(other.y) + 0.01 < (cell.y + cell.height).min(other.y + other.height)
            };
            assert_eq!(within[at + 1..].iter().find(overlaps).map(|other| &other.node), None, "{cell:?}");
        }
    }
    for group in groups.iter().take(12) {
        assert_eq!(group.weight, made.alone(place(group)).0 as f64, "{group:?}");
    }

    // A click on any of them, and a double click on a group.
    let clickable: Vec<&Cell> =
        cells.iter().filter(|cell| cell.kind != "more" && cell.width > 6.0 && cell.height > 6.0).collect();
    for _ in 0..25 {
        let cell = clickable[random.below(clickable.len())];
        let (x, y) = in_window(&mut page, cell.target());
        page.click(x, y, 1);
        assert_eq!(selected(&mut page), json!(made.names[place(cell)]), "{cell:?}");
    }
    check_shown_selected(&mut page, &made);
    let group = groups.iter().find(|group| group.depth == 1).expect("a group in the root's");
    let (x, y) = in_window(&mut page, group.target());
    page.click(x, y, 2);
    let label = &made.names[place(group)][33..];
    assert_eq!(page.text("document.querySelector('#crumbs [aria-current]').textContent"), label);
    page.click_on("#zoom-out");
    page.click_on("#zoom-out");
    assert_eq!(page.text("document.querySelector('#crumbs [aria-current]').textContent"), "Everything");

    // What is too small is in a box of its own, and can be reached on the map all the same.
    let smallest = (0..PATHS).min_by_key(|member| made.sizes[*member]).unwrap();
    search(&mut page, &made.names[smallest]);
    page.click_on("#locate");
    let found = page.evaluate("map.cells().some((cell) => cell.node === selected && cell.kind !== 'more')");
    assert_eq!(found, true, "{}", made.names[smallest]);
    assert_eq!((page.complaints(), page.requests()), (Vec::new(), 1));
}

fn check_shown_selected(page: &mut Page, made: &Made) {
    let name = selected(page);
    check_shown(page, made, made.place(&name));
}

fn focused(page: &mut Page) -> String {
    page.text("document.activeElement.id || document.activeElement.tagName")
}

#[test]
fn everything_can_be_reached_with_the_keyboard() {
    need!(Nix, Chromium);
    let (made, saved, _) = large("keys");
    let mut page = Page::open(&saved.file, 1440, 900);

    // Each stop shows that it has the focus.
    let mut stops = Vec::new();
    while !stops.contains(&"locate".to_owned()) {
        page.press("Tab");
        stops.push(focused(&mut page));
        let is_visible = page.evaluate("getComputedStyle(document.activeElement).outlineStyle !== 'none'");
        assert!(is_visible == true && stops.len() < 30, "{stops:?}");
    }
    let wanted = ["theme", "search", "sort", "list", "more", "zoom-in", "map"];
    let mut found = stops.iter();
    assert!(wanted.iter().all(|stop| found.any(|known| known == stop)), "{stops:?}");

    // From the search into what it found, and one of it.
    page.evaluate("document.getElementById('search').focus()");
    page.type_in("sqlite");
    page.press("ArrowDown");
    assert_eq!(focused(&mut page), "list");
    page.press("ArrowDown");
    page.press("ArrowDown");
    let current = page.text("document.querySelector('.entry.current .label').title");
    page.press("Enter");
    assert_eq!(selected(&mut page), json!(current));
    assert!(current.contains("sqlite"));
    check_shown_selected(&mut page, &made);

    // On the map: every box by Page Down, any neighbour by an arrow; what is announced is what Enter selects.
    page.evaluate("document.getElementById('map').focus()");
    page.press("Home");
    let all = cells(&mut page);
    for key in ["PageDown", "PageDown", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowUp", "PageDown"] {
        page.press(key);
        let announced = page.text("document.getElementById('status').textContent");
        assert!(announced.contains(", brings in ") || announced.contains(" smaller, "), "{key}: {announced}");
    }
    page.press("End");
    page.press("Home");
    page.press("PageDown");
    page.press("Enter");
    let second = page.text(&format!("data.names[{}]", all[1].node));
    assert_eq!(selected(&mut page), json!(second));
    page.press("Home");
    page.press("+");
    assert_eq!(page.evaluate("document.querySelectorAll('#crumbs li').length"), 2);
    page.press("Escape");
    assert_eq!(page.evaluate("document.querySelectorAll('#crumbs li').length"), 1);

    // A link in the facts, and the focus is at the heading of what it leads to.
    page.evaluate("document.querySelector('#references a, #referrers a').focus()");
    let linked = page.text("document.activeElement.hash.slice(1)");
    page.press("Enter");
    page.wait_until(&format!("data.names[selected] === {}", json!(linked)));
    assert_eq!(focused(&mut page), "H2");

    // A screen reader has a name for whatever can be used.
    let spoken = page.spoken();
    let usable = ["button", "link", "searchbox", "combobox", "listbox", "option", "application"];
    let unnamed: Vec<_> =
        spoken.iter().filter(|(role, name)| usable.contains(&role.as_str()) && name.is_empty()).collect();
    assert!(unnamed.is_empty(), "{unnamed:?}");
    for role in usable {
        assert!(spoken.iter().any(|(known, _)| known == role), "no {role}");
    }
    assert_eq!(page.complaints(), Vec::<String>::new());
}

/// Relative luminance of a colour such as `#1c2026` (WCAG 2.2, "relative luminance").
fn luminance(colour: &str) -> f64 {
    let part = |at: usize| f64::from(u8::from_str_radix(&colour[at..at + 2], 16).unwrap()) / 255.0;
    let linear = |part: f64| if part <= 0.04045 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) };
    0.2126 * linear(part(1)) + 0.7152 * linear(part(3)) + 0.0722 * linear(part(5))
}

fn contrast(one: &str, other: &str) -> f64 {
    let (one, other) = (luminance(one), luminance(other));
    (one.max(other) + 0.05) / (one.min(other) + 0.05)
}

#[test]
fn themes_have_contrast_and_every_width_fits() {
    need!(Nix, Chromium);
    let (made, saved, _) = large("themes");
    let mut page = Page::open(&saved.file, 1440, 900);
    let theme = "document.documentElement.dataset.theme";
    for scheme in ["dark", "light"] {
        page.prefer(scheme);
        page.wait_until(&format!("{theme} === '{scheme}'"));
        let mut colour = |name: &str| {
            page.text(&format!(
                "getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()"
            ))
        };
        for ground in ["ground", "surface", "one", "few", "many", "group", "inner"] {
            let ground = colour(ground);
            for (text, least) in [
                ("text", CONTRAST_OF_TEXT),
                ("selected", CONTRAST_OF_MARKS),
                ("outgoing", CONTRAST_OF_MARKS),
                ("incoming", CONTRAST_OF_MARKS),
                ("focus", CONTRAST_OF_MARKS),
            ] {
                let text = (text, colour(text));
                let found = contrast(&text.1, &ground);
                assert!(found >= least, "{scheme}: {text:?} on {ground}: {found:.2}");
            }
        }
        for ground in ["ground", "surface", "group", "inner"] {
            let ground = colour(ground);
            for text in ["muted", "link"] {
                let found = contrast(&colour(text), &ground);
                assert!(found >= CONTRAST_OF_TEXT, "{scheme}: {text} on {ground}: {found:.2}");
            }
        }
    }

    // The switch wins over what the system prefers.
    page.evaluate("document.getElementById('theme').focus()");
    page.press("End");
    assert_eq!(page.text(theme), "dark");
    page.prefer("light");
    assert_eq!(page.text(theme), "dark");
    page.press("Home");
    page.wait_until(&format!("{theme} === 'light'"));

    for (width, height) in [(400, 800), (760, 900), (1180, 700), (2000, 1200)] {
        page.resize(width, height);
        let fits =
            page.evaluate("document.documentElement.scrollWidth === document.documentElement.clientWidth");
        assert_eq!(fits, true, "the page is wider than a window of {width}");
        let map = page.evaluate("(() => { const box = document.getElementById('map').getBoundingClientRect(); return [box.width, box.height]; })()");
        assert!(
            map[0].as_f64().unwrap() > f64::from(width) * 0.4 && map[1].as_f64().unwrap() >= 200.0,
            "{width}: {map}"
        );
    }

    if let Some(dir) = std::env::var_os("NSF_PICTURES").map(PathBuf::from) {
        fs::copy(&saved.file, dir.join("closure.html")).unwrap();
        search(&mut page, "mesa");
        page.evaluate("(() => { const search = document.getElementById('search'); search.value = ''; search.dispatchEvent(new Event('input')); })()");
        for (width, height) in [(400, 1900), (760, 1400), (1440, 900), (2000, 1200)] {
            page.resize(width, height);
            page.evaluate("(() => { document.activeElement.blur(); scrollTo(0, 0); })()");
            for scheme in ["light", "dark"] {
                page.prefer(scheme);
                page.wait_until(&format!("{theme} === '{scheme}'"));
                page.save(&dir.join(format!("closure-{width}-{scheme}.png")));
            }
        }
    }
    assert!(made.names.len() == PATHS && page.complaints().is_empty(), "{:?}", page.complaints());
}

/// A file may name any directory as the store's: to the browser it is text.
#[test]
fn text_that_means_something_to_html_is_shown_as_it_is() {
    need!(Chromium);
    let dir = "/x/</script><script>window.harm = 1</script><!-- <script> <img src=x onerror='window.harm = 2'>\"&lt;\u{2028}@data@";
    let root = StorePath::new(&NixStore::name("top").base).unwrap();
    let info = PathInfo {
        path: root.clone(),
        nar_hash: String::new(),
        nar_size: 1,
        references: Vec::new(),
        deriver: None,
        registration_time: 0,
        signatures: Vec::new(),
        ca: None,
        ultimate: false,
    };
    let closure = Closure::new(vec![root], [info]).unwrap();
    let scratch = crate::util::scratch();
    let file = scratch.path().join("closure.html");
    fs::write(&file, dump::render(&closure, Path::new(dir), dump::Format::Html).unwrap()).unwrap();
    let mut page = Page::open(&file, 800, 600);
    assert!(page.text("document.querySelector('.full').textContent").starts_with(dir));
    assert_eq!(
        page.evaluate("[typeof window.harm, document.images.length, document.scripts.length]"),
        json!(["undefined", 0, 2])
    );
    assert_eq!((page.complaints(), page.requests()), (Vec::new(), 1));
}

/// A list of paths has no sizes, and a database may not know them.
#[test]
fn a_closure_without_sizes_has_a_map_all_the_same() {
    need!(Nix, Chromium);
    let store = NixStore::new();
    let library = store.put_in_place("library", |at| fs::create_dir(at).unwrap());
    let top = store.put_in_place("top", |at| fs::create_dir(at).unwrap());
    let entry = |member: &Member, references: &[&Member]| {
        let references: String = references.iter().map(|other| format!("{}\n", other.path)).collect();
        format!(
            "{}\nsha256:{}\n0\n\n{}\n{references}",
            member.path,
            "0".repeat(64),
            references.lines().count()
        )
    };
    store.nix(
        "nix-store",
        ["--load-db"],
        format!("{}{}", entry(&top, &[&library]), entry(&library, &[])).as_bytes(),
    );
    let saved = save(Program::on(&store).args(["--system", &top.path]));
    let mut page = Page::open(&saved.file, 800, 600);
    let kinds = page.evaluate("map.cells().map((cell) => [cell.kind, nameOf(cell.node), cell.weight])");
    assert_eq!(kinds, json!([["group", "top", 2], ["path", "library", 1], ["own", "top", 1]]));
    assert_eq!(page.complaints(), Vec::<String>::new());
}
