// The map: a treemap of the tree of dominators, on one canvas.

// Rectangles whose areas are as `weights`, each as square as can be (Bruls, Huizing, van Wijk: Squarified Treemaps, 2000).
function squarify(weights, rect) {
  let { x, y, width, height } = rect;
  let left = weights.reduce((sum, weight) => sum + weight, 0);
  const made = [];
  let at = 0;
  while (at < weights.length) {
    const scale = (width * height) / left;
    const side = Math.min(width, height);
    // A row along the shorter side grows as long as that makes its longest rectangle no longer.
    let sum = 0;
    let worst = Infinity;
    let end = at;
    while (end < weights.length) {
      const next = sum + weights[end];
      const thickness = (next * scale) / side;
      const lengths = [weights[at], weights[end]].map((weight) => (weight * scale) / thickness);
      const ratio = Math.max(...lengths.map((length) => Math.max(length / thickness, thickness / length)));
      if (ratio > worst) break;
      worst = ratio;
      sum = next;
      end += 1;
    }
    const thickness = (sum * scale) / side;
    let offset = 0;
    for (const weight of weights.slice(at, end)) {
      const length = (weight / sum) * side;
      made.push(width >= height ? { x, y: y + offset, width: thickness, height: length }
        : { x: x + offset, y, width: length, height: thickness });
      offset += length;
    }
    if (width >= height) { x += thickness; width = Math.max(0, width - thickness); } else { y += thickness; height = Math.max(0, height - thickness); }
    left -= sum;
    at = end;
  }
  return made;
}

const map = (() => {
  const canvas = byId("map");
  const tip = byId("tip");
  // Boxes smaller than this, in square pixels, are drawn together, but for the largest ones of their group.
  const AREA_MIN = 64;
  const BOXES_MIN = 24;
  const HEADER = 20;
  const PAD = 3;
  const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif";

  // What is shown: everything, what is in one path, or what was too small before.
  let frames = [{ kind: "all" }];
  // Boxes in the order in which they are drawn: what is inside comes later.
  let cells = [];
  // Which of them a path is in.
  let boxes = new Map();
  let cursor = -1;
  let hovered = -1;

  const contents = (frame) => (frame.kind === "all" ? tops : frame.kind === "node" ? inside[frame.node] : frame.nodes);

  // Places `nodes` and, with `self`, a path's own part in `rect`.
  function place(nodes, self, rect, depth) {
    const items = nodes.filter((node) => area[node] > 0).map((node) => ({ kind: "path", node, weight: area[node] }));
    if (self >= 0 && ownArea[self] > 0) {
      const own = { kind: "own", node: self, weight: ownArea[self] };
      const after = items.findIndex((item) => item.weight < own.weight);
      items.splice(after < 0 ? items.length : after, 0, own);
    }
    const total = items.reduce((sum, item) => sum + item.weight, 0);
    if (total === 0 || rect.width < 1 || rect.height < 1) return;
    const scale = (rect.width * rect.height) / total;
    let kept = items.findIndex((item) => item.weight * scale < AREA_MIN);
    if (kept >= 0) {
      kept = Math.max(kept, BOXES_MIN);
      const small = items.splice(kept);
      // A path's own part does not hide among others.
      const own = small.findIndex((item) => item.kind === "own");
      if (own >= 0) items.push(...small.splice(own, 1));
      if (small.length === 1) items.push(small[0]);
      if (small.length > 1) {
        const weight = small.reduce((sum, item) => sum + item.weight, 0);
        items.push({ kind: "more", nodes: small.map((item) => item.node), weight });
      }
    }
    squarify(items.map((item) => item.weight), rect).forEach((box, at) => {
      const { kind, node, nodes: together, weight } = items[at];
      const isGroup = kind === "path" && inside[node].length > 0 && box.width > 70 && box.height > HEADER + 30;
      cells.push({ kind: isGroup ? "group" : kind, node: kind === "more" ? -1 : node, nodes: together, weight, depth, ...box });
      if (isGroup) {
        const within = { x: box.x + PAD, y: box.y + HEADER, width: box.width - 2 * PAD, height: box.height - HEADER - PAD };
        place(inside[node], node, within, depth + 1);
      }
    });
  }

  function layout() {
    const { width, height } = canvas.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(width * ratio));
    canvas.height = Math.max(1, Math.round(height * ratio));
    const frame = frames[frames.length - 1];
    cells = [];
    cursor = -1;
    hovered = -1;
    tip.hidden = true;
    place(contents(frame), frame.kind === "node" ? frame.node : -1, { x: 0, y: 0, width, height }, 0);
    boxes = new Map();
    cells.forEach((cell, at) => {
      // A path's own part stands in the box of the path, where that is shown.
      for (const node of cell.kind === "more" ? cell.nodes : [cell.node]) if (!boxes.has(node)) boxes.set(node, at);
    });
    draw();
  }

  // The box of a path, or else of what it is in.
  function cellOf(node) {
    for (let next = node; next >= 0; next = data.dominators[next]) {
      const at = boxes.get(next);
      if (at !== undefined) return at;
    }
    return -1;
  }

  const labelOf = (cell) => (cell.kind === "more" ? `${countText(cell.nodes.length)} smaller` : nameOf(cell.node));
  const sizeOf = (cell) => sizeText(cell.kind === "more" ? cell.nodes.reduce((sum, node) => sum + data.alone[node], 0)
    : cell.kind === "own" ? data.own[cell.node] : data.alone[cell.node]);

  function cut(brush, text, width) {
    if (brush.measureText(text).width <= width) return text;
    let fits = 0;
    for (let step = 1 << Math.floor(Math.log2(text.length || 1)); step > 0; step >>= 1) {
      if (fits + step < text.length && brush.measureText(`${text.slice(0, fits + step)}\u2026`).width <= width) fits += step;
    }
    return fits < 3 ? "" : `${text.slice(0, fits)}\u2026`;
  }

  function draw() {
    const brush = canvas.getContext("2d");
    const ratio = window.devicePixelRatio || 1;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const [ground, text, muted, line, one, few, many, group, inner, surface] =
      ["ground", "text", "muted", "line", "one", "few", "many", "group", "inner", "surface"].map(colour);
    brush.setTransform(ratio, 0, 0, ratio, 0, 0);
    brush.clearRect(0, 0, canvas.width, canvas.height);
    brush.textBaseline = "middle";
    for (const cell of cells) {
      const [x, y, width, height] = [cell.x + 0.5, cell.y + 0.5, Math.max(0.5, cell.width - 1), Math.max(0.5, cell.height - 1)];
      const holders = cell.node >= 0 ? data.holders[cell.node] : 0;
      const isFound = cell.kind === "more" ? cell.nodes.some(list.matches) : cell.kind === "group" || list.matches(cell.node);
      brush.globalAlpha = isFound ? 1 : 0.25;
      brush.fillStyle = cell.kind === "group" ? (cell.depth % 2 ? inner : group) : cell.kind === "more" ? surface
        : holders >= 10 ? many : holders >= 2 ? few : one;
      brush.fillRect(x, y, width, height);
      if (cell.kind === "group" || cell.kind === "more") {
        brush.strokeStyle = cell.kind === "group" ? line : muted;
        brush.lineWidth = 1;
        brush.setLineDash(cell.kind === "more" ? [3, 3] : []);
        brush.strokeRect(x + 0.5, y + 0.5, Math.max(0, width - 1), Math.max(0, height - 1));
        brush.setLineDash([]);
      }
      if (cell.kind === "group") {
        brush.fillStyle = text;
        brush.font = `600 12px ${FONT}`;
        const size = sizeOf(cell);
        brush.font = `12px ${FONT}`;
        const taken = brush.measureText(size).width;
        brush.font = `600 12px ${FONT}`;
        const label = cut(brush, labelOf(cell), width - 2 * PAD - 6 - (width > 150 ? taken + 8 : 0));
        brush.fillText(label, x + PAD + 2, y + HEADER / 2);
        if (width > 150) {
          brush.font = `12px ${FONT}`;
          brush.fillStyle = muted;
          brush.fillText(size, x + width - PAD - 2 - taken, y + HEADER / 2);
        }
      } else if (width > 34 && height > 16) {
        brush.fillStyle = text;
        brush.font = `12px ${FONT}`;
        const whole = cell.kind === "own" && width > 110 ? `${labelOf(cell)} itself` : labelOf(cell);
        const isShort = cell.kind === "more" && brush.measureText(whole).width > width - 10;
        const label = cut(brush, isShort ? `+${countText(cell.nodes.length)}` : whole, width - 10);
        const both = height > 36 && label !== "";
        brush.fillText(label, x + 5, both ? y + 12 : y + Math.min(height / 2, 12));
        if (both) {
          brush.font = `11px ${FONT}`;
          if (brush.measureText(sizeOf(cell)).width <= width - 8) brush.fillText(sizeOf(cell), x + 5, y + 27);
        }
      }
    }
    brush.globalAlpha = 1;
    if (selected >= 0) {
      for (const node of referrers[selected]) outline(brush, cellOf(node), colour("incoming"), 2, [4, 3]);
      for (const node of data.references[selected]) outline(brush, cellOf(node), colour("outgoing"), 2, []);
      outline(brush, cellOf(selected), colour("selected"), 3, []);
    }
    if (hovered >= 0) outline(brush, hovered, text, 1.5, []);
    if (cursor >= 0 && document.activeElement === canvas) {
      outline(brush, cursor, ground, 5, []);
      outline(brush, cursor, colour("focus"), 3, []);
    }
    byId("zoom-out").disabled = frames.length < 2;
  }

  function outline(brush, at, colour, width, dashes) {
    const cell = cells[at];
    if (!cell) return;
    brush.strokeStyle = colour;
    brush.lineWidth = width;
    brush.setLineDash(dashes);
    const inset = width / 2 + 0.5;
    brush.strokeRect(cell.x + inset, cell.y + inset, Math.max(0.5, cell.width - 2 * inset), Math.max(0.5, cell.height - 2 * inset));
    brush.setLineDash([]);
  }

  function crumbs() {
    const box = byId("crumbs");
    const label = (frame) => (frame.kind === "all" ? "Everything" : frame.kind === "node" ? nameOf(frame.node)
      : `${countText(frame.nodes.length)} smaller`);
    // Of many, the first and the last ones.
    const kept = frames.map((frame, at) => [frame, at]).filter(([, at]) => at === 0 || at >= frames.length - 4);
    box.replaceChildren(...kept.map(([frame, at]) => {
      if (at === frames.length - 1) return element("li", {}, element("span", { "aria-current": "true" }, label(frame)));
      const button = element("button", { type: "button" }, label(frame));
      button.addEventListener("click", () => { enter(frames.slice(0, at + 1)); canvas.focus(); });
      return element("li", {}, button);
    }));
  }

  function enter(next) {
    frames = next;
    crumbs();
    layout();
  }

  const framesOf = (node) => {
    const found = [];
    for (let next = node; next >= 0; next = data.dominators[next]) if (inside[next].length > 0) found.push({ kind: "node", node: next });
    return [{ kind: "all" }, ...found.reverse()];
  };

  function zoomInto(cell) {
    if (!cell) return;
    if (cell.kind === "more") enter([...frames, { kind: "more", nodes: cell.nodes }]);
    else enter(framesOf(cell.node));
    const frame = frames[frames.length - 1];
    announce(frame.kind === "node" ? `Inside ${nameOf(frame.node)}, ${pathsText(paths[frame.node])}` : "Zoomed in");
  }

  function zoomOut() {
    if (frames.length < 2) return;
    const left = frames[frames.length - 1];
    enter(frames.slice(0, -1));
    if (left.kind === "node") cursor = cellOf(left.node);
    draw();
    const frame = frames[frames.length - 1];
    announce(frame.kind === "all" ? "Everything" : frame.kind === "node" ? `Inside ${nameOf(frame.node)}` : "Zoomed out");
  }

  // Zooms so that a path has a box of its own, where it has any area.
  function locate(node) {
    enter(data.dominators[node] >= 0 ? framesOf(data.dominators[node]) : [{ kind: "all" }]);
    for (;;) {
      const at = cellOf(node);
      if (at < 0 || cells[at].kind !== "more") { cursor = at; break; }
      enter([...frames, { kind: "more", nodes: cells[at].nodes }]);
    }
    draw();
  }

  function cellAt(event) {
    const { left, top } = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - left, event.clientY - top];
    return cells.findLastIndex((cell) => x >= cell.x && x < cell.x + cell.width && y >= cell.y && y < cell.y + cell.height);
  }

  const act = (cell) => (cell.kind === "more" ? zoomInto(cell) : select(cell.node));

  // Where a box is for the keys: its middle, or that of its header.
  const anchor = (cell) => [cell.x + cell.width / 2, cell.y + (cell.kind === "group" ? HEADER / 2 : cell.height / 2)];

  function step(dx, dy) {
    if (cursor < 0) { moveTo(Math.max(0, cellOf(selected))); return; }
    const [x, y] = anchor(cells[cursor]);
    let best = -1;
    let least = Infinity;
    cells.forEach((cell, at) => {
      const [cx, cy] = anchor(cell);
      const along = (cx - x) * dx + (cy - y) * dy;
      const across = Math.abs((cx - x) * dy) + Math.abs((cy - y) * dx);
      if (at !== cursor && along > 0.5 && along + 2 * across < least) { least = along + 2 * across; best = at; }
    });
    if (best >= 0) moveTo(best);
  }

  function moveTo(at) {
    cursor = Math.max(0, Math.min(at, cells.length - 1));
    const cell = cells[cursor];
    draw();
    if (cell) announce(cell.kind === "more" ? `${labelOf(cell)}, ${sizeOf(cell)}` : spoken(cell.node));
  }

  const keys = {
    ArrowLeft: () => step(-1, 0),
    ArrowRight: () => step(1, 0),
    ArrowUp: () => step(0, -1),
    ArrowDown: () => step(0, 1),
    PageDown: () => moveTo(cursor + 1),
    PageUp: () => moveTo(cursor - 1),
    Home: () => moveTo(0),
    End: () => moveTo(cells.length - 1),
    Enter: () => cells[cursor] && act(cells[cursor]),
    " ": () => cells[cursor] && act(cells[cursor]),
    "+": () => zoomInto(cells[cursor]),
    "=": () => zoomInto(cells[cursor]),
    "-": zoomOut,
    Escape: zoomOut,
  };
  canvas.addEventListener("keydown", (event) => {
    const action = keys[event.key];
    if (action && !event.ctrlKey && !event.altKey && !event.metaKey) { event.preventDefault(); action(); }
  });
  canvas.addEventListener("focus", () => { if (cursor < 0 && canvas.matches(":focus-visible")) moveTo(Math.max(0, cellOf(selected))); else draw(); });
  canvas.addEventListener("blur", draw);
  canvas.addEventListener("click", (event) => {
    const at = cellAt(event);
    if (at < 0) return;
    cursor = at;
    act(cells[at]);
  });
  canvas.addEventListener("dblclick", (event) => {
    const cell = cells[cellAt(event)];
    if (cell && cell.kind !== "more") zoomInto(cell);
  });
  canvas.addEventListener("pointermove", (event) => {
    const at = cellAt(event);
    const cell = cells[at];
    if (at !== hovered) { hovered = at; draw(); }
    tip.hidden = !cell || event.pointerType === "touch";
    if (tip.hidden) return;
    tip.replaceChildren(element("p", {}, labelOf(cell)), element("p", {}, cell.kind === "more" ? sizeOf(cell)
      : `${sizeText(data.own[cell.node])}, brings in ${sizeText(data.alone[cell.node])}, ${heldText(cell.node)}`));
    const { left, top, width, height } = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - left, event.clientY - top];
    tip.style.left = `${x + tip.offsetWidth + 18 > width ? Math.max(0, x - tip.offsetWidth - 10) : x + 14}px`;
    tip.style.top = `${y + tip.offsetHeight + 18 > height ? Math.max(0, y - tip.offsetHeight - 10) : y + 14}px`;
  });
  canvas.addEventListener("pointerleave", () => { hovered = -1; tip.hidden = true; draw(); });
  byId("zoom-in").addEventListener("click", () => zoomInto(cells[cursor >= 0 ? cursor : cellOf(selected)]));
  byId("zoom-out").addEventListener("click", zoomOut);
  const start = () => {
    new ResizeObserver(layout).observe(canvas);
    crumbs();
    layout();
  };
  return { start, draw, locate, cells: () => cells };
})();
