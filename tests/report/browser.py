"""Headless Chromium as a reader of the page: what it draws, logs, asks of the network."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.waiting import LIMIT_S

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=8000",
)
#: Every network request of the page is refused and counted.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
HEAD = f"""
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<script>
window.seen = {{errors: [], requests: []}};
addEventListener("error", (event) => seen.errors.push(String(event.message)));
addEventListener("unhandledrejection", (event) => seen.errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => seen.requests.push(event.blockedURI));
for (const level of ["error", "warn"]) {{
  console[level] = (...words) => seen.errors.push(words.join(" "));
}}
</script>
"""


def chromium() -> str | None:
    """Path of a Chromium, None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def drive(page: Path, script: str, folder: Path, *, width: int = 1000, dark: bool = False) -> Any:
    """Run the body of an async function in the page; what it returns, with `errors`, `requests`.

    The script runs once the page is loaded; an exception in it is among the errors.
    """
    text = page.read_text(encoding="utf-8").replace("<head>", "<head>" + HEAD, 1)
    tail = f"""<script>addEventListener("load", async () => {{
      let result = null;
      try {{
        result = await (async () => {{ {script} }})();
      }} catch (error) {{ seen.errors.push(String(error)); }}
      const made = document.createElement("pre");
      made.id = "result";
      made.textContent = JSON.stringify({{result, ...seen}});
      document.body.append(made);
    }});</script></body>"""
    copy = folder / "driven.html"
    head, _, rest = text.rpartition("</body>")
    copy.write_text(head + tail + rest, encoding="utf-8")
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    size = f"--window-size={width},1200"
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [str(chromium()), *FLAGS, scheme, size, profile, "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-500:] + done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))
