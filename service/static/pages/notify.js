// The page of a job: its title follows its state, and a notice tells of its end, where the browser may show one.
const button = document.getElementById("notify");

if (button && "Notification" in window && Notification.permission !== "denied") {
  button.hidden = false;
  button.addEventListener("click", async () => {
    button.disabled = true;
    const allowed = await Notification.requestPermission() === "granted";
    button.dataset.allowed = allowed;
    button.textContent = allowed ? "You will be told" : "Your browser shows no notices of this site";
  });
}

document.addEventListener("shown", ({ target }) => {
  const state = target.querySelector("[data-tab]");
  if (!state) return;
  document.title = `${state.dataset.tab} · pared`;
  if (state.dataset.notice === undefined) return;
  if (button?.dataset.allowed === "true") new Notification(state.dataset.notice, { tag: location.pathname });
  button?.remove();
});
