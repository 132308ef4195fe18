// What is shown of the selected path.

const LINKS_AT_FIRST = 50;
const isNarrow = window.matchMedia("(max-width: 759px)");
let selected = -1;

const linkTo = (node) => element("a", { href: `#${data.names[node]}`, title: data.names[node] }, nameOf(node));
const bytes = (number) => element("data", { value: String(number), title: `${countText(number)} bytes` }, sizeText(number));

// Items, of which those beyond the first are shown when a button is pressed.
function longList(list, nodes, item) {
  const block = element("div", { className: "block" }, list);
  let shown = 0;
  const show = (until) => {
    for (const node of nodes.slice(shown, until)) list.append(item(node));
    shown = Math.min(until, nodes.length);
  };
  show(LINKS_AT_FIRST);
  if (shown < nodes.length) {
    const button = element("button", { type: "button" }, `Show all ${countText(nodes.length)}`);
    button.addEventListener("click", () => {
      const next = shown;
      show(nodes.length);
      button.remove();
      list.children[next].querySelector("a").focus();
    });
    block.append(button);
  }
  return block;
}

function linkBlock(id, title, none, nodes, number) {
  const heading = element("h3", { id: `${id}-title` }, `${title} (${countText(nodes.length)})`);
  if (nodes.length === 0) return element("div", { className: "block", id }, heading, element("p", { className: "muted" }, none));
  const list = element("ul", { className: "links", "aria-labelledby": heading.id });
  const item = (node) => element("li", {}, linkTo(node), element("span", { className: "number" }, number(node)));
  const block = longList(list, nodes, item);
  block.id = id;
  block.prepend(heading);
  return block;
}

function chainBlock(node) {
  const heading = element("h3", { id: "chain-title" }, isRoot[node] ? "A root" : "Shortest chain from a root");
  const chain = chainTo(node);
  const block = element("div", { className: "block", id: "chain" }, heading);
  if (isRoot[node]) {
    block.append(element("p", { className: "muted" }, "It was asked for by name."));
  } else if (chain.length === 0) {
    block.append(element("p", { className: "muted" }, "No root reaches it."));
  } else {
    const list = element("ol", { className: "chain", "aria-labelledby": heading.id });
    const item = (step) => element("li", {}, step === node
      ? element("a", { href: `#${data.names[step]}`, "aria-current": "true" }, nameOf(step)) : linkTo(step));
    block.append(longList(list, chain, item));
  }
  return block;
}

function showFacts(node) {
  const stat = (title, value, second) => element("div", {}, element("dt", {}, title), element("dd", {}, value),
    ...(second ? [element("dd", { className: "second" }, second)] : []));
  const heldBy = isReached(node) ? countText(data.holders[node]) : "none";
  const zoom = element("button", { type: "button", id: "locate" }, "Show on the map");
  zoom.addEventListener("click", () => { map.locate(node); byId("map").focus({ preventScroll: false }); });
  const out = [...data.references[node]].sort((a, b) => brings(node, b) - brings(node, a) || data.own[b] - data.own[a] || a - b);
  const back = [...referrers[node]].sort((a, b) => data.own[b] - data.own[a] || a - b);
  byId("facts").replaceChildren(
    element("div", { className: "block" },
      element("h2", { tabIndex: -1 }, nameOf(node)),
      element("p", { className: "full" }, `${data.storeDir}/${data.names[node]}`)),
    element("dl", { className: "stats" },
      stat("Own size", bytes(data.own[node])),
      stat("Brings in alone", bytes(data.alone[node]), pathsText(paths[node])),
      stat("Held by", heldBy, isRoot[node] ? "a root" : "")),
    element("div", {}, zoom),
    chainBlock(node),
    linkBlock("references", "Refers to", "It refers to nothing else.", out, (to) => {
      const alone = brings(node, to);
      return alone > 0 ? element("span", {}, "brings in ", bytes(alone)) : heldText(to);
    }),
    linkBlock("referrers", "Referred to by", "Nothing else refers to it.", back, (from) => bytes(data.own[from])));
  byId("facts").scrollTop = 0;
}

// Also in the address, so that Back works and a link to a path can be kept. The grammar of names has nothing that would be encoded there.
function select(node) {
  show(node);
  location.hash = data.names[node];
  if (isNarrow.matches) byId("facts").scrollIntoView({ block: "start" });
}

function show(node) {
  const hadFocus = byId("facts").contains(document.activeElement);
  selected = node;
  showFacts(node);
  if (hadFocus) byId("facts").querySelector("h2").focus();
  list.mark();
  map.draw();
  announce(`Selected ${spoken(node)}`);
}

function showAddressed() {
  const named = places.get(location.hash.slice(1));
  if (named !== undefined && named !== selected) show(named);
}
