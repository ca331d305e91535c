// On a phone what is long begins folded; paper shows all of it. Without this script all is open.
const folds = document.querySelectorAll("details.fold");
const fold = (open) => folds.forEach((each) => { each.open = open; });

if (innerWidth < 576) fold(false);
addEventListener("beforeprint", () => fold(true));

// The fix of a finding, to paste where it is done. Only secure pages may write the clipboard.
for (const button of navigator.clipboard ? document.querySelectorAll("button.copy") : []) {
  button.hidden = false;
  button.onclick = async () => {
    await navigator.clipboard.writeText(button.parentElement.querySelector(".words").textContent);
    button.textContent = "Copied";
  };
}
