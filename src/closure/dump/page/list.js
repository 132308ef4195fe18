// The search, and the list of what it finds.

const list = (() => {
  const STEP = 100;
  const box = byId("list");
  const search = byId("search");
  const order = {
    alone: (a, b) => data.alone[b] - data.alone[a] || data.own[b] - data.own[a] || a - b,
    own: (a, b) => data.own[b] - data.own[a] || a - b,
    holders: (a, b) => data.holders[b] - data.holders[a] || data.own[b] - data.own[a] || a - b,
    name: (a, b) => (nameOf(a) < nameOf(b) ? -1 : nameOf(a) > nameOf(b) ? 1 : a - b),
  };
  let nodes = [];
  let matching = null;
  let current = -1;

  function entry(node, place) {
    const stand = { "aria-selected": String(node === selected), "aria-posinset": String(place + 1), "aria-setsize": String(nodes.length) };
    return element("li", { className: "entry", role: "option", id: `entry-${place}`, ...stand },
      element("span", { className: "label", title: data.names[node] }, nameOf(node)),
      element("span", { className: "number" }, sizeText(data.own[node])),
      element("span", { className: "second" }, `${data.names[node].slice(0, 8)}, ${heldText(node)}`),
      element("span", { className: "second number" }, `alone ${sizeText(data.alone[node])}`));
  }

  function extend(until) {
    const from = box.children.length;
    nodes.slice(from, until).forEach((node, place) => box.append(entry(node, from + place)));
    byId("more").hidden = box.children.length >= nodes.length;
  }

  function move(to) {
    const place = Math.max(0, Math.min(to, nodes.length - 1));
    if (nodes.length === 0) return;
    if (place >= box.children.length) extend(place + STEP);
    if (current >= 0) box.children[current].classList.remove("current");
    current = place;
    box.children[place].classList.add("current");
    box.children[place].scrollIntoView({ block: "nearest" });
    box.setAttribute("aria-activedescendant", `entry-${place}`);
  }

  function update() {
    const words = search.value.toLowerCase().split(/\s+/).filter((word) => word !== "");
    nodes = [];
    for (let node = 0; node < count; node += 1) if (words.every((word) => lowered[node].includes(word))) nodes.push(node);
    matching = words.length === 0 ? null : new Set(nodes);
    nodes.sort(order[byId("sort").value]);
    box.replaceChildren();
    box.removeAttribute("aria-activedescendant");
    box.scrollTop = 0;
    current = -1;
    extend(STEP);
    byId("found").textContent = matching === null ? pathsText(count) : `${countText(nodes.length)} of ${pathsText(count)}`;
    map.draw();
  }

  function mark() {
    nodes.slice(0, box.children.length).forEach((node, place) => {
      box.children[place].setAttribute("aria-selected", String(node === selected));
    });
  }

  const keys = {
    ArrowDown: () => move(current + 1),
    ArrowUp: () => (current <= 0 ? search.focus() : move(current - 1)),
    PageDown: () => move(current + 10),
    PageUp: () => move(current - 10),
    Home: () => move(0),
    End: () => move(nodes.length - 1),
    Enter: () => current >= 0 && select(nodes[current]),
    " ": () => current >= 0 && select(nodes[current]),
  };
  box.addEventListener("keydown", (event) => {
    const action = keys[event.key];
    if (action && !event.ctrlKey && !event.altKey && !event.metaKey) { event.preventDefault(); action(); }
  });
  box.addEventListener("focus", () => { if (current < 0) move(Math.max(0, nodes.slice(0, box.children.length).indexOf(selected))); });
  box.addEventListener("click", (event) => {
    const place = [...box.children].indexOf(event.target.closest(".entry"));
    if (place >= 0) { move(place); select(nodes[place]); }
  });
  search.addEventListener("input", update);
  search.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown") { event.preventDefault(); box.focus(); }
    if (event.key === "Enter" && nodes.length > 0) { move(0); select(nodes[0]); }
  });
  byId("sort").addEventListener("change", update);
  byId("more").addEventListener("click", () => {
    const next = box.children.length;
    extend(next + STEP);
    move(next);
    box.focus();
  });
  return { update, mark, matches: (node) => matching === null || matching.has(node) };
})();
