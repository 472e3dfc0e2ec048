// Puts what the server draws now in the place of what it drew before. Without this script the page
// is loaded anew, by the meta element beside it.
(() => {
  const PAUSE = 5000;
  const live = document.getElementById("live");
  const time = () => new Date().toLocaleTimeString();
  let last = time();

  async function redraw() {
    const response = await fetch(location.href, {
      cache: "no-store",
      headers: { Accept: "text/html" },
      signal: AbortSignal.timeout(2 * PAUSE),
    });
    // its style is allowed by a nonce that this document does not know
    const text = (await response.text()).replace(/<style.*?<\/style>/s, "");
    const page = new DOMParser().parseFromString(text, "text/html");
    const main = page.querySelector("main");
    if (!main) throw new Error("this is not the page");
    const before = [...document.querySelectorAll("details")];
    main.querySelectorAll("details").forEach((found, i) => { found.open = before[i]?.open; });
    document.querySelector("main").replaceChildren(...main.childNodes);
    document.title = page.title;
    document.querySelector("link[rel=icon]").href = page.querySelector("link[rel=icon]").href;
  }

  async function run() {
    if (!document.hidden) {
      try {
        await redraw();
        last = time();
        document.body.className = "";
        live.textContent = `Drawn anew every ${PAUSE / 1000} seconds.`;
      } catch {
        document.body.className = "gone";
        live.textContent = `No answer from the application since ${last}.`;
      }
    }
    setTimeout(run, PAUSE);
  }

  setTimeout(run, PAUSE);
})();
