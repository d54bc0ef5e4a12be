// The console in Chromium, page by page, as an operator works through it. Started by tests/e2e/console.rs, which has
// made the facade, the registry and the devices. Ends with an error at the first thing that is not as it should be.
import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { chromium } from "playwright-core";

const { CONSOLE_URL: url, CONSOLE_REGISTRY: registry, CONSOLE_SCREENSHOTS: pictures } = process.env;
const token = readFileSync(process.env.CONSOLE_TOKEN_FILE, "utf8").trim();
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const HOSTILE = "<img src=x onerror=document.title='owned'>";
mkdirSync(pictures, { recursive: true });

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
});
const context = await browser.newContext({ viewport: { width: 1280, height: 860 } });
const page = await context.newPage();
page.setDefaultTimeout(15_000);
const wrong = [];
let expected = /$^/;
page.on("console", (message) => {
  if (message.type() === "error" && !expected.test(message.text())) wrong.push(message.text());
});
page.on("pageerror", (error) => wrong.push(String(error)));
page.on("dialog", (dialog) => { wrong.push(`a dialog: ${dialog.message()}`); dialog.dismiss(); });
page.on("request", (request) => {
  if (!request.url().startsWith(url) && !request.url().startsWith("data:")) wrong.push(`went to ${request.url()}`);
});

const go = (path) => page.goto(url + path);
const see = (text) => page.getByText(text).first().waitFor();

// A picture in light, in dark and on a phone; no accessibility violation in any; nothing wider than the phone.
async function look(name) {
  for (const [scheme, width, height] of [["light", 1280, 860], ["dark", 1280, 860], ["light", 390, 844]]) {
    await page.emulateMedia({ colorScheme: scheme });
    await page.setViewportSize({ width, height });
    // Evaluated through the debugger, so that the page's policy need not allow it.
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => globalThis.axe.run(document));
    const found = violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" | ").slice(0, 300)}`);
    assert.deepEqual(found, [], `${name} (${scheme}, ${width})`);
    const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(overflow <= 0, `${name} is ${overflow} px too wide at ${width}`);
    await page.screenshot({ path: `${pictures}/${name}-${width < 500 ? "phone" : scheme}.png`, fullPage: true });
  }
  await page.emulateMedia({ colorScheme: "light" });
  await page.setViewportSize({ width: 1280, height: 860 });
  assert.ok(!(await page.title()).includes("owned"), name);
  assert.deepEqual(wrong, [], name);
}

async function story(name, tell) {
  try {
    await tell();
    console.log(`ok   ${name}`);
  } catch (error) {
    await page.screenshot({ path: `${pictures}/failed.png`, fullPage: true }).catch(() => {});
    console.log(`FAIL ${name} at ${page.url()}\n${(await page.locator("body").innerText().catch(() => "")).slice(0, 2000)}`);
    await browser.close();
    throw error;
  }
}

await story("nobody sees a page without signing in, and a wrong token is refused", async () => {
  const answer = await go("/console/devices");
  assert.ok(page.url().endsWith("/console/sign-in"));
  const policy = answer.headers()["content-security-policy"];
  for (const part of ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "form-action 'self'", "base-uri 'none'"]) assert.ok(policy.includes(part), part);
  await look("sign-in");
  expected = /401/;
  await page.getByLabel("Token").fill("wrong");
  await page.keyboard.press("Enter");
  await see("not a valid token");
  expected = /$^/;
  await page.getByLabel("Token").fill(token);
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Overview" }).waitFor();
  const [cookie] = await context.cookies();
  assert.ok(cookie.httpOnly && cookie.sameSite === "Lax" && cookie.value !== token);
});

await story("a script in a page does not run", async () => {
  await page.evaluate(() => {
    const script = document.createElement("script");
    script.textContent = "document.title = 'owned'";
    document.body.append(script);
  });
  assert.ok(!(await page.title()).includes("owned"));
  assert.equal(wrong.length, 1);
  assert.match(wrong.pop(), /Content Security Policy/i);
});

await story("the empty pages say what to do next", async () => {
  await go("/console");
  await see("First steps");
  for (const [path, line] of [["connections", "facade connection add"], ["repository", "facade connection add"], ["artifacts", "facade import"], ["assignments", "facade import"]]) {
    await go(`/console/${path}`);
    await page.locator("code", { hasText: line }).first().waitFor();
    await look(`empty-${path}`);
  }
});

await story("a registry is connected with a pasted address, and tested", async () => {
  await go("/console/connections");
  const connect = async (password) => {
    await page.getByLabel("Registry: its host").fill(`http://${registry}/team/app`);
    await page.getByLabel("User name", { exact: true }).fill(process.env.CONSOLE_REGISTRY_USER);
    await page.getByLabel("Password or token").fill(password);
    await page.getByText("Google, AWS, Azure, private networks").click();
    await page.getByLabel("It may have loopback").check();
    await page.getByLabel("Speak plain HTTP").check();
    await page.getByRole("button", { name: "Connect and test" }).click();
    await see("is connected.");
  };
  await connect("wrong");
  await page.locator(".notice.bad").waitFor();
  await look("connections-failing");
  await connect(process.env.CONSOLE_REGISTRY_PASSWORD);
  await page.locator(".notice.good .checks").waitFor();
  assert.equal(await page.locator("body", { hasText: process.env.CONSOLE_REGISTRY_PASSWORD }).count(), 0);
  await page.getByRole("button", { name: `Test ${registry}` }).click();
  await page.locator(".notice.good .checks").waitFor();
  await look("connections");
});

await story("an upstream's and a person's text cannot be HTML", async () => {
  await go(`/console/repository?repository=${encodeURIComponent(HOSTILE)}&filter=${encodeURIComponent(HOSTILE)}`);
  await page.locator(".notice.bad").waitFor();
  assert.equal(await page.locator("main img").count(), 0);
  await go(`/console/devices?group=${encodeURIComponent("fleet")}&standing=${encodeURIComponent(HOSTILE)}`);
  assert.equal(await page.locator("main img").count(), 0);
  await go("/console/device?id=hostile-1");
  await page.locator("td", { hasText: "<script>" }).waitFor();
  assert.equal(await page.locator("main script, main img").count(), 0);
  await look("device-hostile");
});

await story("what a hostile registry answers is text", async () => {
  const hostile = process.env.CONSOLE_HOSTILE_REGISTRY;
  await go("/console/connections");
  await page.getByLabel("Registry: its host").fill(hostile);
  await page.getByLabel("User name", { exact: true }).fill("somebody");
  await page.getByLabel("Password or token").fill("something");
  await page.getByText("Google, AWS, Azure, private networks").click();
  await page.getByLabel("It may have loopback").check();
  await page.getByLabel("Speak plain HTTP").check();
  await page.getByRole("button", { name: "Connect and test" }).click();
  await page.locator(".notice.bad").waitFor();
  const clean = async (path) => {
    await go(path);
    assert.equal(await page.locator("main img, main script").count(), 0, path);
    assert.ok(!(await page.title()).includes("owned"), path);
  };
  await clean("/console/connections");
  expected = /40\d|50\d/;
  await clean(`/console/repository?repository=${hostile}/team/app`);
  expected = /$^/;
  await clean("/console");
  await look("hostile-registry");
});

let name;
await story("tags are picked and imported, each with its outcome", async () => {
  await go("/console/repository");
  await page.getByLabel("Repository").fill(`${registry}/team/app`);
  await page.getByRole("button", { name: "Show tags" }).click();
  await page.getByLabel("v1.0", { exact: true }).check();
  await look("repository");
  await page.getByLabel("A tag by its name").fill(HOSTILE);
  await page.getByRole("button", { name: "Import" }).click();
  await page.getByRole("cell", { name: "imported", exact: true }).waitFor();
  await page.getByRole("cell", { name: /unsupported/ }).waitFor();
  assert.equal(await page.locator("main img").count(), 0);
  await look("imported");
  const link = page.getByRole("region", { name: "What became" }).getByRole("link").first();
  name = await link.getAttribute("title");
  await link.click();
  await see("It is assigned to nobody");
});

await story("an artifact is assigned to a device", async () => {
  await page.getByRole("link", { name: "Assign it" }).click();
  await page.getByLabel("Device", { exact: true }).fill("board-1");
  await page.getByRole("button", { name: "Assign", exact: true }).click();
  await see("1 device is to change");
  await look("assignments");
  await page.getByLabel("Artifact: its name").fill(name);
  await page.getByLabel("or group").fill("fleet");
  await page.getByRole("button", { name: "Assign", exact: true }).click();
  await page.getByRole("row", { name: /fleet/ }).getByRole("button").click();
  await see("Taken back");
  await go(`/console/artifact?name=${encodeURIComponent(name)}`);
  await see("Assigned to");
  await look("artifact");
  await go("/console/artifacts");
  await look("artifacts");
});

await story("a rollout is previewed, made, started, watched as it goes, and aborted", async () => {
  await go(`/console/rollouts?name=${encodeURIComponent(HOSTILE)}&to=${encodeURIComponent(HOSTILE)}`);
  assert.equal(await page.locator("main img").count(), 0);
  await go("/console/rollouts");
  await page.locator("code", { hasText: "facade rollout create" }).first().waitFor();
  await look("empty-rollouts");
  await page.getByLabel("Name", { exact: true }).fill("app-1.0");
  await page.getByLabel("Artifacts: names").fill(name);
  await page.getByLabel("To which devices").fill("id in (board-1,hostile-1)");
  await page.getByLabel("Soak time").fill("1h");
  await page.getByRole("button", { name: "Preview" }).click();
  await see("It would reach 2 devices");
  await look("rollout-preview");
  assert.equal(await page.getByLabel("To which devices").inputValue(), "id in (board-1,hostile-1)");
  await page.getByRole("button", { name: "Make it" }).click();
  await see("It has not started");
  await page.getByRole("button", { name: "Start" }).click();
  await see("app-1.0 is running now");
  await page.getByRole("region", { name: "Devices of the rollout" }).getByText("waiting", { exact: true }).waitFor();
  await look("rollout");
  // Somebody else holds it: the page tells so by itself.
  const held = await context.request.post(`${url}/api/v1/rollouts/app-1.0/pause`, { headers: { authorization: `Bearer ${token}` } });
  assert.equal(held.status(), 200);
  await page.getByRole("button", { name: "Resume" }).waitFor();
  await look("rollout-paused");
  await page.getByText("Abort…").click();
  await page.getByRole("button", { name: "Abort and revert" }).click();
  await see("app-1.0 is aborted now");
  await go("/console/rollouts");
  await page.getByRole("cell", { name: "aborted" }).waitFor();
  await look("rollouts");
});

await story("devices are filtered, suspended, restored and revoked", async () => {
  await go("/console/devices");
  await look("devices");
  await page.getByLabel("Selector").fill("id in (board-1,hostile-1)");
  await page.getByLabel("Standing").selectOption("active");
  await page.getByRole("button", { name: "Filter" }).click();
  await page.getByRole("link", { name: "hostile-1" }).click();
  await page.getByRole("button", { name: "Suspend" }).click();
  await see("hostile-1 is suspended now");
  await page.getByRole("button", { name: "Restore" }).click();
  await see("hostile-1 is active now");
  await page.getByText("Revoke…").click();
  await page.getByLabel("Type hostile-1").fill("another");
  await page.getByRole("button", { name: "Revoke this device" }).click();
  await see("type the device's id");
  await page.locator(".notice code").waitFor();
  await page.getByText("Revoke…").click();
  await page.getByLabel("Type hostile-1").fill("hostile-1");
  await page.getByRole("button", { name: "Revoke this device" }).click();
  await see("hostile-1 is revoked now");
  await go("/console/device?id=board-1");
  await look("device");
});

await story("a token is made, shown once, and revoked", async () => {
  await go("/console/enrollment");
  await page.getByLabel("Group").fill("fleet");
  await page.getByRole("button", { name: "Make a token" }).click();
  await see("device-agent enroll drayage1.");
  await page.getByRole("img", { name: "QR code" }).waitFor();
  await look("enrollment");
  await page.reload();
  assert.equal(await page.getByText("drayage1.").count(), 0);
  await page.getByRole("button", { name: /^Revoke token/ }).first().click();
  await see("is revoked");
  await page.getByLabel("Group").fill(HOSTILE);
  await page.getByRole("button", { name: "Make a token" }).click();
  await page.locator(".notice.bad code").waitFor();
  assert.equal(await page.locator("main img").count(), 0);
});

await story("a device is put in a group and taken out of it", async () => {
  await go("/console/device?id=board-1");
  await page.getByLabel("Put it in group").fill("kitchen");
  await page.getByRole("button", { name: "Add" }).click();
  await see("board-1 is in kitchen now");
  await page.getByRole("button", { name: "Take it out of kitchen" }).click();
  await see("board-1 is in no group now");
  await see("What operators did");
  await look("device-groups");
});

await story("a device is labelled, and found by its label", async () => {
  await go("/console/device?id=board-1");
  await page.getByLabel("Label", { exact: true }).fill("stage");
  await page.getByLabel("Value", { exact: true }).fill("canary");
  await page.getByRole("button", { name: "Set" }).click();
  await see("board-1 has the labels stage=canary now");
  await page.getByLabel("Label", { exact: true }).fill("stage");
  await page.getByLabel("Value", { exact: true }).fill(HOSTILE);
  await page.getByRole("button", { name: "Set" }).click();
  await page.locator(".notice.bad code").waitFor();
  assert.equal(await page.locator("main img").count(), 0);
  await go("/console/devices?selector=stage%3Dcanary");
  await page.getByRole("cell", { name: "stage=canary" }).waitFor();
  assert.equal(await page.getByRole("link", { name: "hostile-1" }).count(), 0);
  await look("devices-labelled");
  expected = /422/;
  await go(`/console/devices?selector=${encodeURIComponent(HOSTILE)}`);
  assert.equal(await page.locator("main img").count(), 0);
  expected = /$^/;
  await go("/console/device?id=board-1");
  await page.getByRole("button", { name: "Take away the label stage" }).click();
  await see("board-1 has no labels now");
});

await story("who pulled what is shown and filtered", async () => {
  await go("/console/pulls");
  await page.getByRole("row", { name: /hostile-1/ }).getByText("refused").waitFor();
  await look("pulls");
  await page.getByLabel("Outcome").selectOption("served");
  await page.getByLabel("Device").fill("hostile-1");
  await page.getByRole("button", { name: "Filter" }).click();
  await see("No pull found");
  await go(`/console/pulls?repository=${encodeURIComponent(HOSTILE)}&digest=${encodeURIComponent(HOSTILE)}`);
  await see("No pull found");
  assert.equal(await page.locator("main img").count(), 0);
});

await story("the cache is shown, checked and pruned", async () => {
  await go("/console/cache");
  await look("cache");
  await page.getByRole("button", { name: "Check every byte" }).click();
  await see("blobs are whole");
  await page.getByLabel("Remove what").selectOption("0");
  await page.getByRole("button", { name: "Prune" }).click();
  await see(/Removed \d+ blobs/);
});

await story("the keys say when what they signed ends", async () => {
  await go("/console/keys");
  await page.getByRole("row", { name: /images root/ }).waitFor();
  await page.getByRole("row", { name: /director targets/ }).getByText("signed for each device").waitFor();
  await look("keys");
});

await story("an operator's token is made, shown once, and revoked", async () => {
  await go("/console/access");
  await look("empty-access");
  await page.getByLabel("Name").fill("auditor");
  await page.getByRole("button", { name: "Make a token" }).click();
  await see("drayage-operator.");
  await look("access");
  await page.reload();
  assert.equal(await page.getByText("drayage-operator.").count(), 0);
  await page.getByLabel("Name").fill(HOSTILE);
  await page.getByRole("button", { name: "Make a token" }).click();
  await page.locator(".notice.bad").waitFor();
  assert.equal(await page.locator("main img").count(), 0);
  await page.getByRole("button", { name: "Revoke token auditor" }).click();
  await see("Token auditor is revoked");
});

await story("the audit log is filtered, paged and checked", async () => {
  await go("/console/audit?check=yes");
  await see("The log is whole");
  await look("audit");
  await page.getByLabel("Action or subject has").fill("operator-tokens");
  await page.getByRole("button", { name: "Filter" }).click();
  await page.getByRole("row", { name: /operator-tokens\/auditor/ }).waitFor();
  assert.equal(await page.getByRole("row", { name: /connections/ }).count(), 0);
  await go(`/console/audit?text=${encodeURIComponent(HOSTILE)}&who=${encodeURIComponent(HOSTILE)}`);
  await see("No record found");
  assert.equal(await page.locator("main img").count(), 0);
});

await story("an error page has its request's id", async () => {
  expected = /404/;
  const answer = await go("/console/device?id=nobody");
  assert.equal(answer.status(), 404);
  await see(answer.headers()["x-request-id"]);
  await look("error");
});

await story("it works without JavaScript, by keyboard, and ends with signing out", async () => {
  const plain = await browser.newContext({ javaScriptEnabled: false });
  const bare = await plain.newPage();
  await bare.goto(`${url}/console/sign-in`);
  await bare.getByLabel("Token").fill(token);
  await bare.keyboard.press("Enter");
  await bare.getByRole("heading", { name: "Overview" }).waitFor();
  await bare.keyboard.press("Tab");
  assert.equal(await bare.locator(":focus").innerText(), "To the content");
  await bare.goto(`${url}/console/connections`);
  await bare.getByRole("button", { name: `Test ${registry}` }).click();
  await bare.locator(".notice.good .checks").waitFor();
  await bare.getByRole("button", { name: "Sign out" }).click();
  await bare.goto(`${url}/console`);
  assert.ok(bare.url().endsWith("/console/sign-in"));
  await go("/console");
  await look("overview");
});

await story("somebody signs in with the identity provider, and may only look", async () => {
  const other = await browser.newContext();
  const there = await other.newPage();
  there.setDefaultTimeout(15_000);
  await there.goto(`${url}/console/sign-in`);
  await there.getByRole("link", { name: /^Sign in with/ }).click();
  await there.locator("input[name=sub]").first().fill("jane");
  await there.keyboard.press("Enter");
  await there.getByRole("heading", { name: "Overview" }).waitFor();
  await there.getByText("oidc/jane@example.com").waitFor();
  await there.goto(`${url}/console/enrollment`);
  assert.equal(await there.getByRole("button", { name: "Make a token" }).count(), 0);
  await there.getByRole("button", { name: "Sign out" }).click();
  await there.goto(`${url}/console`);
  assert.ok(there.url().endsWith("/console/sign-in"));
});

await story("another site's form changes nothing", async () => {
  const answer = await context.request.post(`${url}/console/device/suspend`, { form: { id: "board-1" }, headers: { origin: "https://evil.example" }, maxRedirects: 0 });
  assert.equal(answer.status(), 403);
  const without = await context.request.post(`${url}/console/device/suspend`, { form: { id: "board-1" }, headers: { origin: url }, maxRedirects: 0 });
  assert.equal(without.status(), 403);
});

assert.deepEqual(wrong, []);
await browser.close();
