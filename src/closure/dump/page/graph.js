"use strict";
// The page of a closure. Members are meant by their places in the data's lists, which are sorted by name. Whatever comes from the data
// reaches the page as the text of an element, as the value of one, or as the fragment of a link, and in no other way.

const data = JSON.parse(document.getElementById("data").textContent);
const count = data.names.length;
const HASH_LENGTH = 32;

const isRoot = new Uint8Array(count);
for (const root of data.roots) isRoot[root] = 1;
const nameOf = (node) => data.names[node].slice(HASH_LENGTH + 1);
const isReached = (node) => isRoot[node] === 1 || data.parents[node] >= 0;
const places = new Map(data.names.map((name, node) => [name, node]));
const lowered = data.names.map((name) => name.toLowerCase());

const referrers = data.names.map(() => []);
data.references.forEach((references, node) => references.forEach((to) => referrers[to].push(node)));

// The tree of dominators, and of what stands in each path: how many, and the area that they take on the map.
const inside = data.names.map(() => []);
const tops = [];
data.dominators.forEach((above, node) => (above < 0 ? tops : inside[above]).push(node));
// Where no size is known, each path takes as much as any other.
const ownArea = data.own.some((size) => size > 0) ? data.own : data.own.map(() => 1);
const area = Float64Array.from(ownArea);
const paths = new Int32Array(count).fill(1);
{
  const order = [...tops];
  for (let at = 0; at < order.length; at += 1) for (const node of inside[order[at]]) order.push(node);
  for (const node of order.reverse()) {
    const above = data.dominators[node];
    if (above >= 0) { area[above] += area[node]; paths[above] += paths[node]; }
  }
}
const heaviestFirst = (a, b) => area[b] - area[a] || a - b;
tops.sort(heaviestFirst);
inside.forEach((nodes) => nodes.sort(heaviestFirst));

// What goes if `from` does not refer to `to` any more.
const brings = (from, to) => (data.holders[to] === 1 && data.dominators[to] === from ? data.alone[to] : 0);

function chainTo(node) {
  const chain = [];
  if (isReached(node)) for (let next = node; next >= 0; next = data.parents[next]) chain.push(next);
  return chain.reverse();
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

// The rule of `values::Size`.
function sizeText(bytes) {
  let unit = 0;
  let one = 1;
  while (Math.round((bytes * 10) / one) >= 10240 && unit + 1 < UNITS.length) { unit += 1; one *= 1024; }
  if (unit === 0) return `${bytes} B`;
  const tenths = Math.round((bytes * 10) / one);
  return `${Math.floor(tenths / 10)}.${tenths % 10} ${UNITS[unit]}`;
}

const countText = (number) => number.toLocaleString("en");
const pathsText = (number) => (number === 1 ? "1 path" : `${countText(number)} paths`);

function heldText(node) {
  if (!isReached(node)) return "no root reaches it";
  return `held by ${countText(data.holders[node])}`;
}

function spoken(node) {
  return `${nameOf(node)}, ${sizeText(data.own[node])}, brings in ${sizeText(data.alone[node])}, ${heldText(node)}`;
}

// An element with properties and children; a text becomes text.
function element(tag, properties, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const byId = (id) => document.getElementById(id);
const announce = (text) => { byId("status").textContent = text; };
