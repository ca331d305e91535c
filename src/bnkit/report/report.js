// Draws each chart into its place. The look names variables of the style sheet for its colours, so
// that one drawing serves light, dark and paper.
const { look, charts } = JSON.parse(document.getElementById("charts").textContent);
const options = { actions: false, config: look, renderer: "svg", tooltip: { theme: "page" } };

for (const [name, chart] of Object.entries(charts)) {
  const place = document.getElementById(name);
  vegaEmbed(place, chart, options).catch((error) => {
    place.textContent = `This chart could not be drawn: ${error.message}`;
  });
}
