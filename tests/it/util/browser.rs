//! A real browser without a window: Chromium, driven by its DevTools protocol.
//!
//! Over `--remote-debugging-pipe`: messages of JSON, each ended by a NUL, which the browser reads from descriptor 3 and writes to 4. A shell
//! makes those two of its standard input and output, as the standard library passes no others.
//!
//! What the browser reports by itself is kept: [`Page::complaints`] are the lines of its console, exceptions, and requests.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Value, json};

use super::{DEADLINE, gate, wait_readable};

/// The names of the program, the smallest first.
pub(crate) const NAMES: [&str; 2] = ["chromium-headless-shell", "chromium"];

/// The browser with one page.
#[derive(Debug)]
pub(crate) struct Page {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    /// What was read and belongs to a message that has not ended.
    unread: Vec<u8>,
    last_id: u64,
    session: Option<String>,
    /// What the browser reported by itself.
    events: Vec<Value>,
    _profile: tempfile::TempDir,
}

impl Page {
    /// Opens a file in a window of the given size, and waits until it is loaded.
    pub(crate) fn open(file: &Path, width: u32, height: u32) -> Self {
        let program = NAMES.iter().find_map(|name| gate::find(name)).expect("need!(Chromium) comes first");
        let profile = super::scratch();
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1"]).arg(program);
        command.args([
            "--headless",
            "--remote-debugging-pipe",
            "--no-first-run",
            "--disable-gpu",
            "--disable-extensions",
        ]);
        command.args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-dev-shm-usage",
        ]);
        command.args(["--force-color-profile=srgb", "--lang=en"]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        if rustix::process::geteuid().is_root() {
            // It refuses to run as root with its sandbox. What it opens here is a file of our own.
            command.arg("--no-sandbox");
        }
        command.env("HOME", profile.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().expect("sh");
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut page = Self {
            child,
            input,
            output,
            unread: Vec::new(),
            last_id: 0,
            session: None,
            events: Vec::new(),
            _profile: profile,
        };
        let target = page.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attached =
            page.call("Target.attachToTarget", json!({ "targetId": target["targetId"], "flatten": true }));
        page.session = Some(attached["sessionId"].as_str().expect("a session").to_owned());
        for domain in ["Page", "Runtime", "Log", "Network", "Accessibility"] {
            page.call(&format!("{domain}.enable"), json!({}));
        }
        page.resize(width, height);
        page.call("Page.navigate", json!({ "url": format!("file://{}", file.display()) }));
        page.wait_for_event("Page.loadEventFired");
        page
    }

    /// Gives the window another size.
    pub(crate) fn resize(&mut self, width: u32, height: u32) {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        // What depends on the size is drawn within the next frame.
        self.evaluate(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))",
        );
    }

    /// What the system prefers: `light` or `dark`.
    pub(crate) fn prefer(&mut self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// The value of an expression in the page, or of the promise that it is.
    pub(crate) fn evaluate(&mut self, expression: &str) -> Value {
        let wanted = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let answer = self.call("Runtime.evaluate", wanted);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// The same as text.
    pub(crate) fn text(&mut self, expression: &str) -> String {
        self.evaluate(expression).as_str().unwrap_or_else(|| panic!("{expression} is no text")).to_owned()
    }

    /// Waits until a condition holds, asking at each frame.
    pub(crate) fn wait_until(&mut self, condition: &str) {
        self.evaluate(&format!(
            "new Promise((done) => {{ const ask = () => (({condition}) ? done(0) : requestAnimationFrame(ask)); ask(); }})"
        ));
    }

    /// Clicks so many times at a place in the window.
    pub(crate) fn click(&mut self, x: f64, y: f64, times: u32) {
        self.call("Input.dispatchMouseEvent", json!({ "type": "mouseMoved", "x": x, "y": y }));
        for count in 1..=times {
            for kind in ["mousePressed", "mouseReleased"] {
                let event = json!({ "type": kind, "x": x, "y": y, "button": "left", "clickCount": count });
                self.call("Input.dispatchMouseEvent", event);
            }
        }
    }

    /// Clicks in the middle of an element.
    pub(crate) fn click_on(&mut self, selector: &str) {
        let place = self.evaluate(&format!(
            "(() => {{ const found = document.querySelector({}); found.scrollIntoView({{ block: 'nearest' }}); \
             const box = found.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; }})()",
            json!(selector)
        ));
        self.click(place[0].as_f64().unwrap(), place[1].as_f64().unwrap(), 1);
    }

    /// Presses a key, by the name that it has in the page.
    pub(crate) fn press(&mut self, key: &str) {
        let (code, text) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            "Escape" => (27, ""),
            "PageUp" => (33, ""),
            "PageDown" => (34, ""),
            "End" => (35, ""),
            "Home" => (36, ""),
            "ArrowLeft" => (37, ""),
            "ArrowUp" => (38, ""),
            "ArrowRight" => (39, ""),
            "ArrowDown" => (40, ""),
            character => (0, character),
        };
        let down = if text.is_empty() { "rawKeyDown" } else { "keyDown" };
        let event = |kind: &str, text: &str| json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text });
        self.call("Input.dispatchKeyEvent", event(down, text));
        self.call("Input.dispatchKeyEvent", event("keyUp", ""));
    }

    /// Types a text where the focus is.
    pub(crate) fn type_in(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// What a screen reader is told: role and name of each node that is not ignored.
    pub(crate) fn spoken(&mut self) -> Vec<(String, String)> {
        let tree = self.call("Accessibility.getFullAXTree", json!({}));
        let nodes = tree["nodes"].as_array().expect("nodes").iter().filter(|node| node["ignored"] == false);
        let value = |node: &Value, of: &str| node[of]["value"].as_str().unwrap_or_default().to_owned();
        nodes.map(|node| (value(node, "role"), value(node, "name"))).collect()
    }

    /// Saves a picture of the window.
    pub(crate) fn save(&mut self, file: &Path) {
        let picture = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        let mut decode = Command::new("base64");
        let mut decode = decode
            .arg("--decode")
            .stdin(Stdio::piped())
            .stdout(std::fs::File::create(file).unwrap())
            .spawn()
            .unwrap();
        decode.stdin.take().unwrap().write_all(picture["data"].as_str().unwrap().as_bytes()).unwrap();
        assert!(decode.wait().unwrap().success());
    }

    /// What should not have happened: lines in the console, exceptions, and requests for anything but the file itself.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let is_complaint = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown" | "Runtime.consoleAPICalled" | "Log.entryAdded") => true,
            Some("Network.requestWillBeSent") => event["params"]["type"] != "Document",
            _ => false,
        };
        self.events.iter().filter(is_complaint).map(Value::to_string).collect()
    }

    /// How many requests the page made, its own file included.
    pub(crate) fn requests(&self) -> usize {
        self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent").count()
    }

    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.last_id += 1;
        let mut message = json!({ "id": self.last_id, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.input.write_all(&bytes).unwrap_or_else(|error| panic!("{method}: {error}"));
        loop {
            let answer = self.receive(method);
            if answer["id"] == self.last_id {
                assert!(answer.get("error").is_none(), "{message}: {answer}");
                return answer["result"].clone();
            }
            self.events.push(answer);
        }
    }

    fn wait_for_event(&mut self, method: &str) {
        while !self.events.iter().any(|event| event["method"] == method) {
            let event = self.receive(method);
            self.events.push(event);
        }
    }

    /// The next message.
    fn receive(&mut self, awaited: &str) -> Value {
        let until = Instant::now() + DEADLINE;
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == 0) {
                let message: Vec<u8> = self.unread.drain(..=end).collect();
                return serde_json::from_slice(&message[..end]).expect("JSON of the browser");
            }
            assert_eq!(wait_readable([&self.output], until), [true], "the browser does not answer {awaited}");
            let mut part = vec![0; 1 << 16];
            let length = self.output.read(&mut part).unwrap();
            assert_ne!(length, 0, "the browser ended before it answered {awaited}");
            self.unread.extend_from_slice(&part[..length]);
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ended = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
        let _reaped = self.child.wait();
    }
}
