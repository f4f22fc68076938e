"use strict";
(() => {
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  document.documentElement.classList.add("js");

  const open = (yes) => all("details").forEach((one) => { one.open = yes; });
  all("[data-open]").forEach((button) => {
    button.addEventListener("click", () => open(button.dataset.open === "yes"));
  });

  // A link to a closed section opens it; on paper the sections are open.
  const reveal = () => {
    const found = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    if (found && found.tagName === "DETAILS") found.open = true;
  };
  addEventListener("hashchange", reveal);
  reveal();
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details.section:not([open])");
    closed.forEach((one) => { one.open = true; });
  });
  addEventListener("afterprint", () => { closed.forEach((one) => { one.open = false; }); });

  // Thresholds: what each position of a slider would do.
  const sliders = all("input[data-steps]");
  const value = (slider) => JSON.parse(slider.dataset.steps)[Number(slider.value)];
  const percent = (share) => `${Math.round(100 * share)}\u00a0%`;
  const say = (slider) => {
    const [threshold, texts, right] = value(slider);
    const total = Number(slider.dataset.total);
    const text = `Over ${threshold}: ${texts} ${texts === 1 ? "text gets" : "texts get"} the label, about ${Math.round(right)} of them rightly`
      + (texts ? ` (precision ${percent(right / texts)}, recall ${percent(right / total)}).` : ".");
    slider.setAttribute("aria-valuetext", text);
    slider.parentElement.querySelector("output").textContent = text;
  };
  const list = () => {
    const box = document.querySelector(".changed");
    const moved = sliders.some((slider) => slider.value !== slider.defaultValue);
    box.classList.toggle("on", moved);
    const given = JSON.parse(box.dataset.shipped);
    sliders.forEach((one) => {
      if (one.value !== one.defaultValue) given[Number(one.dataset.column)] = value(one)[0];
    });
    box.querySelector("code").textContent = `classifier.set_thresholds([${given.join(", ")}])`;
  };
  sliders.forEach((slider) => {
    slider.value = slider.defaultValue; // not what a browser remembers
    slider.addEventListener("input", () => { say(slider); list(); });
    say(slider);
  });
  all("[data-reset]").forEach((button) => button.addEventListener("click", () => {
    sliders.forEach((slider) => { slider.value = slider.defaultValue; say(slider); });
    list();
  }));
})();
