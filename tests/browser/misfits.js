// Copyright: lvs.fleet contributors
// SPDX-License-Identifier: GPL-3.0-or-later
//
// What does not fit on the page in the frame, as a list of texts in #found.
"use strict";

const frame = document.querySelector("iframe");

function told(element) {
  const place = element.closest("section");
  const words = (element.textContent || "").trim().slice(0, 40);
  return `${place ? place.id + " " : ""}${element.tagName.toLowerCase()} ${JSON.stringify(words)}`;
}

function overlap(one, other) {
  const wide = Math.min(one.right, other.right) - Math.max(one.left, other.left);
  const tall = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
  return wide > 1 && tall > 1;
}

function measured(page, view) {
  const found = [];
  for (const details of page.querySelectorAll("details")) details.open = true;
  const wide = page.documentElement.clientWidth;
  if (page.documentElement.scrollWidth > wide) found.push("the page can be scrolled sideways");
  const seen = [...page.body.querySelectorAll("*")].filter((element) => element.getClientRects().length);

  for (const element of seen) {
    const box = element.getBoundingClientRect();
    const scrolled = element.parentElement.closest(".scroll");
    if (!scrolled && (box.left < -1 || box.right > wide + 1)) found.push(`off the screen: ${told(element)}`);
    if (element.ownerSVGElement || element.matches("svg, .scroll")) continue;
    const inline = view.getComputedStyle(element).display === "inline";
    if (!inline && !element.querySelector(".scroll") && element.scrollWidth > element.clientWidth + 1 && !scrolled)
      found.push(`runs out: ${told(element)}`);
    if (element.matches("th, td, caption") && element.scrollWidth > element.clientWidth + 1)
      found.push(`runs out of its cell: ${told(element)}`);
  }

  // What stands beside or below each other.
  for (const parent of [page.body, ...seen].filter((element) => !element.ownerSVGElement && !element.matches("svg"))) {
    const children = [...parent.children].filter(
      (child) => child.getClientRects().length && view.getComputedStyle(child).display !== "inline");
    for (let place = 1; place < children.length; place++)
      if (overlap(children[place - 1].getBoundingClientRect(), children[place].getBoundingClientRect()))
        found.push(`overlap: ${told(children[place - 1])} and ${told(children[place])}`);
  }

  // Boxes of the drawing, and words in them.
  const boxes = [...page.querySelectorAll(".box")];
  const frames = boxes.map((box) => box.querySelector("rect").getBoundingClientRect());
  const drawing = page.querySelector(".topology");
  boxes.forEach((box, number) => {
    const around = frames[number];
    const whole = drawing.getBoundingClientRect();
    if (around.left < whole.left - 1 || around.right > whole.right + 1 || around.top < whole.top - 1 ||
        around.bottom > whole.bottom + 1) found.push(`out of the drawing: ${told(box)}`);
    frames.slice(number + 1).forEach((other, more) => {
      if (overlap(around, other)) found.push(`overlap: ${told(box)} and ${told(boxes[number + 1 + more])}`);
    });
    const words = [...box.querySelectorAll("text")];
    words.forEach((text, place) => {
      const own = text.getBoundingClientRect();
      if (own.left < around.left || own.right > around.right + 1) found.push(`out of its box: ${told(text)}`);
      words.slice(place + 1).forEach((other) => {
        if (overlap(own, other.getBoundingClientRect())) found.push(`overlap in a box: ${told(text)}`);
      });
    });
  });

  // The keyboard reaches what can be scrolled.
  for (const element of page.querySelectorAll(".scroll")) {
    if (!element.getClientRects().length) continue;
    element.focus();
    if (page.activeElement !== element) found.push(`no focus: ${told(element)}`);
  }
  if (!boxes.length && !page.querySelector("#topology p")) found.push("there is no drawing");
  if (seen.length < 50) found.push("there is hardly anything");
  return found;
}

function finish() {
  const page = frame.contentDocument;
  document.getElementById("found").textContent = JSON.stringify(measured(page, frame.contentWindow).slice(0, 40));
}

if (frame.contentDocument && frame.contentDocument.readyState === "complete" && frame.contentDocument.body.children.length) finish();
else frame.addEventListener("load", finish);
