// Draws each chart into its place. Colours are the style sheet's variables, so that one drawing
// serves light, dark and paper.
const charts = JSON.parse(document.getElementById("charts").textContent);
const options = { actions: false, renderer: "svg", tooltip: { theme: "custom" } };

for (const [name, chart] of Object.entries(charts)) {
  const place = document.getElementById(name);
  vegaEmbed(place, chart, options).catch((error) => {
    place.textContent = `This chart could not be drawn: ${error.message}`;
  });
}
