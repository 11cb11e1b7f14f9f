"use strict";
// Drop a scan, follow its job, get the results. Everything comes from this server.

const API = "/api/v1";
const $ = (id) => document.getElementById(id);
const names = new Map(); // job -> name of the file, which the server is never told
let token = sessionStorage.getItem("token") || "";

function headers() {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function ask(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: headers() });
  if (answer.ok) return answer;
  if (answer.status === 401) $("login").hidden = false;
  const problem = await answer.json().catch(() => ({ detail: answer.statusText }));
  throw new Error(told(problem));
}

function told(problem) {
  const step = problem.code === "token-required" ? "Enter it above." : problem.next_step;
  return sentences(problem.detail, step);
}

function sentences(cause, step) { // a cause may end with a full stop
  return [cause?.replace(/\.$/, ""), step].filter(Boolean).join(". ");
}

function element(tag, text = "", attributes = {}) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.textContent = text;
  return made;
}

// ---- the server ---------------------------------------------------------------------------------

async function showHealth() {
  try {
    const health = await (await fetch(`${API}/health`)).json();
    const model = health.model
      ? `model ${health.model.method}, ${health.model.sha256.slice(0, 12)}` : "no model yet";
    $("health").textContent = `kidseg ${health.version}: ${health.status}; ${model}`;
    $("use").textContent = health.use;
    if (health.token_required && !token) $("login").hidden = false;
    if (!$("formats").children.length) showFormats(health.formats);
    if (health.status === "loading") setTimeout(showHealth, 1000);
  } catch {
    $("health").textContent = "The server does not answer.";
    setTimeout(showHealth, 3000);
  }
}

function showFormats(formats) {
  for (const format of formats) {
    const box = element("input", "", {
      type: "checkbox", value: format, checked: ["nii", "html"].includes(format),
    });
    const label = element("label");
    label.append(box, ` ${format}`);
    $("formats").append(label);
  }
}

// ---- upload -------------------------------------------------------------------------------------

const MOST_FILES = 10; // at a time; more are the images of a series

function uploadAll(files, hasFolder = false) {
  $("message").textContent = "";
  if (hasFolder || files.length > MOST_FILES) {
    const what = hasFolder ? "A folder" : `${files.length} files`;
    $("message").textContent = `${what} cannot be sent. Make a zip of the series, and drop that.`;
    return;
  }
  for (const file of files) upload(file);
}

function upload(file) {
  const chosen = [...$("formats").querySelectorAll(":checked")].map((box) => box.value);
  const query = new URLSearchParams({
    formats: chosen.join(",") || "nii", figures: $("figures").checked, repair: $("repair").checked,
  });
  for (const name of ["series", "trust"]) if ($(name).value) query.set(name, $(name).value);
  const card = newCard(file.name);
  const state = card.querySelector(".state");
  const request = new XMLHttpRequest(); // fetch does not tell the progress of an upload
  request.open("POST", `${API}/jobs?${query}`);
  for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
  request.upload.onprogress = (event) => {
    state.textContent = `uploading, ${Math.round(100 * event.loaded / event.total)} %`;
  };
  const abort = element("button", "Cancel", { type: "button", onclick: () => request.abort() });
  card.querySelector(".actions").replaceChildren(abort);
  const failed = (text) => {
    card.className = "job failed";
    state.textContent = text;
    card.querySelector("progress").hidden = true;
    const remove = element("button", "Remove", { type: "button", onclick: () => card.remove() });
    card.querySelector(".actions").replaceChildren(remove);
  };
  request.onabort = () => card.remove();
  request.onerror = () => failed("not sent: the server cannot be reached, or the file not read.");
  request.onload = () => {
    let answer = {};
    try {
      answer = JSON.parse(request.responseText);
    } catch {
      answer.detail = `the server answers ${request.status}`; // or something before it
    }
    if (request.status !== 201) {
      if (request.status === 401) $("login").hidden = false;
      return failed(`not taken: ${told(answer)}`);
    }
    names.set(answer.id, file.name);
    card.dataset.job = answer.id;
    return follow(answer, card);
  };
  const body = new FormData();
  body.append("file", file, "scan"); // not its name, which may be that of a patient
  request.send(body);
}

// ---- jobs ---------------------------------------------------------------------------------------

function newCard(name) {
  const card = $("card").content.firstElementChild.cloneNode(true);
  card.querySelector("h2").textContent = name;
  $("jobs").prepend(card);
  return card;
}

async function follow(job, card) {
  show(job, card);
  while (job.state === "queued" || job.state === "running") {
    try {
      const answer = await ask(`${API}/jobs/${job.id}/events`);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        text += value;
        const events = text.split("\n\n");
        text = events.pop();
        for (const event of events) {
          const line = event.split("\n").find((each) => each.startsWith("data: "));
          if (line) show((job = JSON.parse(line.slice(6))), card);
        }
      }
    } catch (error) {
      card.querySelector(".state").textContent = `waiting for the server (${error.message})`;
    }
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
}

function show(job, card) {
  card.className = `job ${job.state}`;
  const texts = {
    queued: job.ahead ? `waiting, ${job.ahead} before it` : "waiting",
    running: `running: ${job.stage}, ${Math.round(100 * job.progress)} %`,
    done: "done",
    cancelled: "cancelled",
    failed: job.error ? `failed: ${sentences(job.error.cause, job.error.next_step)}` : "failed",
  };
  card.querySelector(".state").textContent = texts[job.state];
  const bar = card.querySelector("progress");
  bar.value = job.progress;
  const active = job.state === "queued" || job.state === "running";
  bar.hidden = !active;
  const remove = element("button", active ? "Cancel" : "Remove", { type: "button" });
  remove.onclick = async () => {
    try {
      await ask(`${API}/jobs/${job.id}`, { method: "DELETE" });
      if (!active) card.remove();
    } catch (error) {
      $("message").textContent = error.message;
    }
  };
  card.querySelector(".actions").replaceChildren(remove);
  if (job.state === "done") showResult(job.result, card.querySelector(".found"));
}

function showResult(result, place) {
  const table = element("table");
  const head = element("tr");
  head.append(element("th", "Region"), element("th", "Volume in ml"));
  table.append(head);
  for (const [name, volume] of Object.entries(result.volumes_ml)) {
    const row = element("tr");
    row.append(element("td", name), element("td", volume.toFixed(1), { className: "number" }));
    table.append(row);
  }
  const warnings = element("ul", "", { className: "warnings" });
  for (const warning of result.warnings) {
    warnings.append(element("li", sentences(warning.cause, warning.next_step)));
  }
  const files = element("div", "", { className: "files" });
  for (const file of result.files) files.append(...buttons(file));
  place.replaceChildren(table, warnings, files);
  const figure = result.files.find((file) => file.format === "figure");
  if (figure) showFigure(figure, place);
}

function buttons(file) {
  const save = element("button", file.name, { type: "button", className: "file" });
  save.onclick = async () => {
    try {
      const link = element("a", "", { download: file.name });
      link.href = URL.createObjectURL(await (await ask(file.href)).blob());
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    } catch (error) {
      $("message").textContent = error.message;
    }
  };
  return file.format === "html" ? [opener(file), save] : [save];
}

function opener(file) {
  const text = "Open the report";
  if (!token) {
    const href = `${file.href}?view=true`;
    return element("a", text, { className: "button report", href, target: "_blank", rel: "noopener" });
  }
  const button = element("button", text, { type: "button", className: "report" });
  button.onclick = async () => { // a window has no token: it gets a link that is valid for a while
    const opened = window.open("", "_blank"); // now: a browser lets only a click open one
    try {
      const { href } = await (await ask(`${file.href}/link`, { method: "POST" })).json();
      if (!opened) throw new Error("The browser did not open a window. Allow it, or save the report");
      opened.opener = null;
      opened.location.replace(href);
    } catch (error) {
      if (opened) opened.close();
      $("message").textContent = error.message;
    }
  };
  return button;
}

async function showFigure(file, place) {
  const image = element("img", "", { alt: "Steps of the segmentation" });
  try {
    image.src = URL.createObjectURL(await (await ask(file.href)).blob());
  } catch (error) {
    $("message").textContent = error.message;
    return;
  }
  image.onload = () => URL.revokeObjectURL(image.src);
  place.append(image);
}

async function showJobs() {
  try {
    let after = 0;
    while (after !== null) {
      const list = await (await ask(`${API}/jobs?after=${after}`)).json();
      for (const job of list.jobs) {
        if (document.querySelector(`[data-job="${job.id}"]`)) continue;
        const when = new Date(job.created * 1000).toLocaleString();
        const card = newCard(names.get(job.id) || `Scan of ${when}`);
        card.dataset.job = job.id;
        follow(job, card);
      }
      after = list.next;
    }
    $("login").hidden = true;
  } catch (error) {
    $("message").textContent = error.message;
  }
}

// ---- begin --------------------------------------------------------------------------------------

$("login").onsubmit = (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem("token", token);
  $("message").textContent = "";
  showJobs();
};
$("upload").onsubmit = (event) => event.preventDefault();
$("file").onchange = () => {
  uploadAll([...$("file").files]);
  $("file").value = "";
};
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.());
  uploadAll([...event.dataTransfer.files], entries.some((entry) => entry?.isDirectory));
});
showHealth().then(() => {
  if (token || $("login").hidden) showJobs();
});
