// On a phone what is long begins folded; paper shows all of it. Without this script all is open.
const folds = document.querySelectorAll("details.fold");
const fold = (open) => folds.forEach((each) => { each.open = open; });

if (innerWidth < 576) fold(false);
addEventListener("beforeprint", () => fold(true));
