// Draws the figures that the page carries, and shows or hides a variant in all of them at once.
for (const place of document.querySelectorAll(".plot")) {
  const figure = JSON.parse(document.getElementById(`${place.id}-data`).textContent);
  Plotly.newPlot(place, figure.data, figure.layout, { responsive: true, displaylogo: false });
}
for (const chip of document.querySelectorAll(".chip")) {
  chip.addEventListener("click", () => {
    const shown = chip.getAttribute("aria-pressed") === "false";
    chip.setAttribute("aria-pressed", String(shown));
    for (const place of document.querySelectorAll(".plot")) {
      const traces = place.data.flatMap((trace, at) => (trace.meta === chip.value ? [at] : []));
      if (traces.length) Plotly.restyle(place, { visible: shown }, traces);
    }
  });
}
// Paper is narrower than the window.
const fit = () => {
  for (const place of document.querySelectorAll(".plot")) Plotly.Plots.resize(place);
};
window.addEventListener("beforeprint", fit);
window.addEventListener("afterprint", fit);
