"use strict";
// Without this script the page works, too: it only keeps both videos together and adds keys.
const videos = [...document.querySelectorAll("video")];
const questions = [...document.querySelectorAll("fieldset")];

function play() {
  for (const video of videos) {
    video.currentTime = 0;
    video.play().catch(() => {});  // a browser may want a click first
  }
}

for (const video of videos) {
  video.loop = false;  // two loops of their own drift apart
  video.addEventListener("ended", () => {
    if (videos.every((one) => one.ended)) play();
  });
}

function answer(place) {
  const open = questions.find((question) => question.contains(document.activeElement))
    || questions.find((question) => !question.querySelector(":checked"));
  if (!open) return;
  const choice = open.querySelectorAll("input")[place];
  choice.checked = true;
  const next = questions[questions.indexOf(open) + 1];
  (next ? next.querySelector("input") : document.querySelector("button")).focus();
}

document.addEventListener("keydown", (event) => {
  if (!questions.length || event.ctrlKey || event.altKey || event.metaKey) return;
  if (["1", "2", "3"].includes(event.key)) answer(Number(event.key) - 1);
  if (event.key.toLowerCase() === "r") play();
});

if (!matchMedia("(prefers-reduced-motion: reduce)").matches) {
  Promise.all(videos.map((video) => new Promise((ready) => {
    if (video.readyState >= 3) ready();
    else video.addEventListener("canplay", ready, { once: true });
  }))).then(play);
}
