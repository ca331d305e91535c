// Draws each chart into its place. Colours are the style sheet's variables, so that one drawing
// serves light, dark and paper.
const charts = JSON.parse(document.getElementById("charts").textContent);
// Only errors are logged (level 1): a warning about heights that does not matter is not.
const options = { actions: false, renderer: "svg", logLevel: 1, tooltip: { theme: "page" } };

for (const [name, chart] of Object.entries(charts)) {
  const place = document.getElementById(name);
  vegaEmbed(place, chart, options).catch((error) => {
    place.textContent = `This chart could not be drawn: ${error.message}`;
  });
}
