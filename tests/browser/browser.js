// The page in a real browser: node browser.js PYTHON. Prints what it proved, ends with 1 where not.
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, mkdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import assert from "node:assert/strict";
import OpenAI from "openai";
import { chromium } from "playwright-core";

process.env.OMP_NUM_THREADS = "1"; // two threads differ from one in the last bit
const [python = "python"] = process.argv.slice(2);
const shots = process.env.SHOTS;
const work = mkdtempSync(join(tmpdir(), "sdpipe-browser-"));
const FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync"];

async function serve(...more) {
  const child = spawn(python, ["-m", "sdpipe", "serve", "--model", "emoji", "--port", "0", ...more],
    { stdio: ["ignore", "pipe", "inherit"] });
  const url = await new Promise((done, fail) => {
    createInterface(child.stdout).once("line", done);
    child.once("exit", (code) => fail(new Error(`the server ended with ${code}`)));
  });
  const end = () => new Promise((done) => { child.once("exit", done); child.kill("SIGINT"); });
  return { url, end };
}

async function metric(url, name, headers = {}) {
  const text = await (await fetch(`${url}/metrics`, { headers })).text();
  return Number(text.match(new RegExp(`^sdpipe_${name} (.*)$`, "m"))[1]);
}

async function until(is, what, seconds = 60) {
  for (const end = Date.now() + 1000 * seconds; Date.now() < end;) {
    if (await is()) return;
    await new Promise((done) => setTimeout(done, 50));
  }
  assert.fail(`never came: ${what}`);
}

async function test(name, body) {
  await body();
  console.log(`ok: ${name}`);
}

const server = await serve();
const browser = await chromium.launchPersistentContext(join(work, "profile"), {
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: FLAGS, acceptDownloads: true,
  viewport: { width: 1280, height: 900 },
});
const problems = [];

async function open(path = "", at = server.url) {
  const page = await browser.newPage();
  page.on("console", (message) => { if (message.type() === "error") problems.push(message.text()); });
  page.on("pageerror", (error) => problems.push(String(error)));
  await page.goto(at + path);
  await page.waitForSelector("body[data-ready]");
  page.setDefaultTimeout(90_000);
  return page;
}

const isDone = (page) => page.waitForFunction(() => document.getElementById("status").textContent.startsWith("Done"));

try {
  let file;
  await test("draws: rows that grow, predictions at a step, the words, a file that proves itself", async () => {
    const page = await open();
    await page.fill("#prompt", "red apple");
    await page.fill("#field-seed", "42");
    await page.fill("#field-steps", "12");
    await page.click("#draw");
    await isDone(page);
    assert.equal(await page.locator(".frame").count(), 12);
    assert.equal(await page.locator("#three figure").count(), 3);
    assert.match(await page.textContent("#step-note"), /^σ 0\.\d+, timestep \d+\. \d+\.\d° between/);
    assert.match(await page.textContent("#preview-note"), /off by \d+ of 255/);
    await page.locator(".frame").nth(3).hover();
    assert.equal(await page.textContent("#step-number"), "4 of 12");
    await page.focus("#scrubber");
    await page.keyboard.press("ArrowRight");
    assert.equal(await page.textContent("#step-number"), "5 of 12");
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("#save")]);
    file = join(work, "apple.png");
    await download.saveAs(file);
    const link = await page.getAttribute("#link", "href");
    assert.equal(link, "?prompt=red+apple&seed=42&steps=12");
    await page.click("#words");
    await page.waitForSelector("#word-list:not([hidden])");
    assert.deepEqual(await page.locator("#word-list button").evaluateAll((all) => all.map((b) => b.firstChild.data)),
      ["red", "apple", "padding"]);
    assert.ok(await page.isVisible("#overlay"));
    const filled = await open(`/${link}`);
    assert.equal(await filled.inputValue("#prompt"), "red apple");
    assert.equal(await filled.inputValue("#field-steps"), "12");
    assert.ok(await filled.isHidden("#result"));
    await filled.close();
    await page.close();
  });

  await test("a saved image is identical, by the command line and dropped on the page", async () => {
    const replay = spawn(python, ["-m", "sdpipe", "replay", "--verify", file, "--out", join(work, "again")]);
    let told = "";
    replay.stdout.on("data", (data) => { told += data; });
    replay.stderr.on("data", (data) => { told += data; });
    assert.equal(await new Promise((done) => replay.once("exit", done)), 0, told);
    assert.match(told, /identical/);
    const page = await open();
    const data = await page.evaluateHandle((bytes) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0))], "apple.png"));
      return transfer;
    }, readFileSync(file).toString("base64"));
    for (const kind of ["dragover", "drop"]) await page.dispatchEvent("body", kind, { dataTransfer: data });
    await page.waitForSelector("#rows dd");
    assert.match(await page.textContent("#rows"), /promptred apple/);
    await page.click("#replay");
    await page.waitForSelector(".verdict.identical");
    assert.equal(await page.textContent("#verdict"), "identical");
    assert.ok(await page.isVisible("#again"));
    if (shots) await page.screenshot({ path: join(shots, "dropped.png"), fullPage: true });
    await page.close();
  });

  await test("stop ends the work within two steps", async () => {
    const page = await open();
    await page.fill("#prompt", "castle");
    await page.fill("#field-steps", "150");
    const before = await metric(server.url, "cancelled_total");
    await page.click("#draw");
    await page.waitForFunction(() => document.querySelectorAll(".frame").length > 2);
    await page.click("#stop");
    await until(async () => (await metric(server.url, "drawing")) === 0, "an idle server", 10);
    assert.equal(await metric(server.url, "cancelled_total"), before + 1);
    assert.match(await page.textContent("#status"), /^Stopped after \d+ of 150 steps\.$/);
    await page.close();
  });

  await test("a bad value is refused beside its field, in the words of the command line", async () => {
    const page = await open();
    await page.fill("#prompt", "red apple");
    await page.fill("#field-width", "100");
    await page.click("#draw");
    await page.waitForSelector("#field-width[aria-invalid=true]");
    assert.equal(await page.textContent("#error-width"), "width=100 is not a multiple of 8; the nearest are 96 and 104.");
    await page.fill("#field-width", "");
    await page.evaluate(() => { document.getElementById("more").open = true; });
    await page.fill("#field-eta", "7");
    await page.evaluate(() => { document.getElementById("more").open = false; });
    await page.click("#draw");
    await page.waitForSelector("#field-eta[aria-invalid=true]");
    assert.ok(await page.isVisible("#error-eta"));
    assert.ok(await page.isHidden("#stop"));
    await page.fill("#field-eta", "");
    await page.fill("#field-steps", "2");
    await page.click("#draw");
    await isDone(page);
    await page.fill("#field-steps", "0");
    await page.click("#draw");
    await page.waitForSelector("#field-steps[aria-invalid=true]");
    assert.ok(await page.isHidden("#stop"));
    assert.match(await page.textContent("#status"), /^Done/); // the image before stays
    await page.close();
  });

  await test("by the keyboard alone: several images, and variations of one", async () => {
    const page = await open();
    await page.keyboard.type("rocket");
    for (let k = 0; k < 12 && await page.evaluate(() => document.activeElement.id) !== "field-n"; k++) await page.keyboard.press("Tab");
    await page.keyboard.type("3");
    await page.keyboard.press("Tab");
    await page.keyboard.type("6");
    await page.keyboard.press("Enter");
    await isDone(page);
    assert.equal(await page.locator(".tile").count(), 3);
    await page.locator(".tile").nth(2).focus();
    await page.keyboard.press("Enter");
    assert.equal(await page.locator(".tile").nth(2).getAttribute("aria-pressed"), "true");
    await page.keyboard.press("Tab");
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.getElementById("status").textContent === "Done: 4 images.");
    assert.equal(await page.inputValue("#field-variation_strength"), "0.2");
    await page.close();
  });

  if (shots) await test("screenshots", async () => {
    mkdirSync(shots, { recursive: true });
    for (const scheme of ["light", "dark"]) for (const width of [360, 800, 1280]) {
      const page = await open("/?prompt=strawberry+on+sky+blue&seed=7&n=" + (width === 800 ? "4" : "1"));
      await page.emulateMedia({ colorScheme: scheme });
      await page.setViewportSize({ width, height: 900 });
      await page.screenshot({ path: join(shots, `empty-${scheme}-${width}.png`) });
      await page.click("#draw");
      await isDone(page);
      await page.locator(".frame").nth(9).hover();
      assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `wide at ${width}`);
      await page.screenshot({ path: join(shots, `done-${scheme}-${width}.png`), fullPage: true });
      if (width !== 800) {
        await page.click("#words");
        await page.waitForSelector("#word-list:not([hidden])");
        await page.screenshot({ path: join(shots, `words-${scheme}-${width}.png`), fullPage: true });
      }
      await page.evaluate(() => { document.getElementById("more").open = true; });
      await page.screenshot({ path: join(shots, `all-${scheme}-${width}.png`), fullPage: true });
      await page.close();
    }
  });

  await test("the openai package generates, streams, and an abort stops the drawing", async () => {
    const client = new OpenAI({ apiKey: "none", baseURL: `${server.url}/v1` });
    const ask = { model: "emoji", prompt: "pizza", steps: 4, seed: 1 };
    const whole = await client.images.generate(ask);
    assert.equal(Buffer.from(whole.data[0].b64_json, "base64").subarray(1, 4).toString(), "PNG");
    const kinds = [];
    for await (const event of await client.images.generate({ ...ask, stream: true, partial_images: 2 })) kinds.push(event.type);
    assert.deepEqual(kinds, ["image_generation.partial_image", "image_generation.partial_image", "image_generation.completed"]);
    const before = await metric(server.url, "cancelled_total");
    const abort = new AbortController();
    setTimeout(() => abort.abort(), 1000);
    await assert.rejects(client.images.generate({ ...ask, steps: 150, n: 8 }, { signal: abort.signal, maxRetries: 0 }), OpenAI.APIUserAbortError);
    await until(async () => (await metric(server.url, "cancelled_total")) === before + 1, "a request that was cancelled", 20);
    await until(async () => (await metric(server.url, "drawing")) === 0, "an idle server", 10);
  });

  const known = problems.filter((text) => !/status of 400/.test(text)); // those that the tests provoke
  await test("nothing was refused by the policy of the page, and no script failed", () => assert.deepEqual(known, []));
} finally {
  await browser.close();
  await server.end();
}

const locked = await serve("--api-key", "quince");
const keyed = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: FLAGS });
try {
  await test("with a key set, the page asks for it and draws", async () => {
    const stranger = await keyed.newContext();
    const refused = await (await stranger.newPage()).goto(locked.url).catch(() => null); // it asks, and nobody answers
    assert.ok(refused === null || refused.status() === 401);
    const context = await keyed.newContext({ httpCredentials: { username: "me", password: "quince" } });
    const page = await context.newPage();
    await page.goto(locked.url);
    await page.waitForSelector("body[data-ready]");
    await page.fill("#prompt", "lemon");
    await page.fill("#field-steps", "4");
    await page.click("#draw");
    await page.waitForFunction(() => document.getElementById("status").textContent.startsWith("Done"), null, { timeout: 90_000 });
  });
} finally {
  await keyed.close();
  await locked.end();
  rmSync(work, { recursive: true, force: true });
}
