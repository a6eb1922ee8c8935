"use strict";
// Draws the plots from the data in the page, in the colours of the page, and again when those change.
(function () {
  const root = document.documentElement;
  root.classList.remove("noscript");
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const palette = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8a8a8a", "#B8A800"];

  // A finger that swipes over a plot scrolls the page; a mouse draws what to zoom into.
  const dragmode = window.matchMedia("(pointer: coarse)").matches ? false : "zoom";

  // Cores stay apart however many chips lie side by side: beside them are the axis and the colour bar.
  function inked(figure) {
    // Bars of many colours get plotly.js's own dark grey for their error bars, which a dark page swallows.
    const ink = getComputedStyle(root).getPropertyValue("--ink").trim();
    return figure.data.map((trace) => trace.type === "bar" && trace.error_y
      ? Object.assign({}, trace, { error_y: Object.assign({}, trace.error_y, { color: ink }) }) : trace);
  }

  function sized(figure, place) {
    const across = (figure.layout.meta || {}).across;
    if (!across) { return inked(figure); }
    const size = Math.max(2, Math.min(16, Math.floor((place.clientWidth - 180) / across) - 1));
    return figure.data.map((trace) => Object.assign({}, trace, { marker: Object.assign({}, trace.marker, { size }) }));
  }

  function themed(layout) {
    const style = getComputedStyle(root);
    const of = (name) => style.getPropertyValue(name).trim();
    const axis = (given) => Object.assign(
      { gridcolor: of("--grid"), linecolor: of("--line"), zerolinecolor: of("--line"), automargin: true },
      given, { title: Object.assign({ standoff: 8 }, given.title) });
    const made = Object.assign({
      dragmode, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", colorway: palette,
      font: { color: of("--ink"), size: 13, family: "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', sans-serif" },
      margin: { l: 56, r: 12, t: layout.updatemenus ? 52 : 12, b: 44 },
      legend: { orientation: "h", y: -0.22, x: 0 },
      hoverlabel: { bgcolor: of("--card"), bordercolor: of("--line"), font: { color: of("--ink") }, align: "left" },
    }, layout, { xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis) });
    if (layout.shapes) {
      made.shapes = layout.shapes.map((shape) => Object.assign({}, shape, {
        line: { color: of("--line"), width: shape.line.width } }));
    }
    if (layout.updatemenus) {
      made.updatemenus = layout.updatemenus.map((menu) => Object.assign({}, menu, {
        bgcolor: of("--card"), bordercolor: of("--line"), font: { color: of("--quiet"), size: 12 }, showactive: false,
        pad: { t: 0 } }));
    }
    return made;
  }

  function draw() {
    for (const [name, figure] of Object.entries(figures)) {
      const place = document.getElementById("plot-" + name);
      if (place) {
        Plotly.react(place, sized(figure, place), themed(figure.layout), { responsive: true, displaylogo: false, displayModeBar: false });
      }
    }
  }

  draw();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  // Tables stand open where there is no JavaScript; here the plots show the same.
  const tables = document.querySelectorAll("details.data");
  for (const table of tables) { table.open = false; }
  window.addEventListener("beforeprint", () => { for (const table of tables) { table.open = true; } });
})();
