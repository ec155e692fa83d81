// Draws the figures embedded in the page; the buttons show or hide a variant in all of them.
const plots = [...document.querySelectorAll(".plot")];
const partners = Object.entries(JSON.parse(document.getElementById("dark-colours").textContent));
const dark = matchMedia("(prefers-color-scheme: dark)");
const hidden = new Set();
// On a touch screen, a finger on a chart scrolls the page instead of zooming.
const touch = matchMedia("(pointer: coarse)").matches;
let printing = false;

const draw = (plot) => {
  let text = document.getElementById(`${plot.id}-data`).textContent;
  if (dark.matches && !printing) {
    for (const [light, partner] of partners) text = text.replaceAll(light, partner);
  }
  const { data, layout } = JSON.parse(text);
  for (const trace of data) if (hidden.has(trace.meta)) trace.visible = false;
  if (touch) layout.dragmode = false;
  // Paper has another width than the window; these are the widths of study.css.
  if (printing) layout.width = plot.closest(".pair:not(.many)") ? 310 : 640;
  Plotly.react(plot, data, layout, { responsive: true, displayModeBar: false });
};
const drawAll = () => {
  for (const chip of document.querySelectorAll(".chip")) {
    const colour = chip.dataset.colour;
    const partner = partners.find(([light]) => light === colour);
    chip.style.setProperty("--c", dark.matches && !printing && partner ? partner[1] : colour);
  }
  for (const plot of plots) draw(plot);
};
drawAll();
for (const chip of document.querySelectorAll(".chip")) {
  chip.addEventListener("click", () => {
    const visible = chip.getAttribute("aria-pressed") === "false";
    chip.setAttribute("aria-pressed", String(visible));
    if (visible) hidden.delete(chip.value);
    else hidden.add(chip.value);
    drawAll();
  });
}
dark.addEventListener("change", drawAll);
for (const [event, on] of [["beforeprint", true], ["afterprint", false]]) {
  window.addEventListener(event, () => {
    printing = on;
    drawAll();
  });
}
