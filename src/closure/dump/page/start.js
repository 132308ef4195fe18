// The theme, and what happens when the page is there.

const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
function applyTheme() {
  const chosen = byId("theme").value;
  document.documentElement.dataset.theme = chosen === "system" ? (prefersDark.matches ? "dark" : "light") : chosen;
  map.draw();
}
byId("theme").addEventListener("change", applyTheme);
prefersDark.addEventListener("change", applyTheme);

{
  const [first, ...others] = data.roots;
  const title = first === undefined ? "Empty closure"
    : `Closure of ${nameOf(first)}${others.length > 0 ? ` and ${countText(others.length)} more` : ""}`;
  document.title = title;
  byId("title").textContent = title;
  byId("summary").textContent = `${pathsText(count)}, ${sizeText(data.own.reduce((sum, size) => sum + size, 0))}, in ${data.storeDir}`;
  applyTheme();
  map.start();
  list.update();
  window.addEventListener("hashchange", showAddressed);
  showAddressed();
  if (selected < 0 && first !== undefined) show(first);
  announce("");
  document.documentElement.dataset.ready = "yes";
}
