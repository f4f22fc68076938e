"""Ask the OSV database which installed packages have known vulnerabilities; offline, list them.

    python .ci/audit.py venv/lib/python3.12/site-packages

Needs pip-audit beside this Python. Fails where a vulnerability has a version that mends it; those
that nobody has mended yet are printed."""

import json
import subprocess
import sys
from importlib.metadata import distributions
from typing import Any


def ask(folder: str) -> tuple[list[dict[str, Any]] | None, str]:
    "What pip-audit says of the packages in a folder, or None and why it says nothing."
    command = [sys.executable, "-m", "pip_audit", "--path", folder, "--format", "json"]
    command += ["--vulnerability-service", "osv", "--progress-spinner", "off", "--desc", "off"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
        return json.loads(ended.stdout)["dependencies"], ""
    except subprocess.TimeoutExpired:
        return None, "no answer in 5 minutes"
    except (ValueError, KeyError):
        said = ended.stderr.strip().splitlines() or ["no reason given"]
        return None, said[-1].partition("(")[0][:200].rstrip()


def main(folder: str) -> int:
    "Print what is known; 1 where a package should be replaced by a newer one."
    audited, why = ask(folder)
    if audited is None:
        found = sorted({f"{d.name}=={d.version}" for d in distributions(path=[folder])})
        print(f"No audit, the database did not answer ({why}). Installed are:", *found, sep="\n  ")
        return 0 if found else 1
    mended = 0
    for package in audited:
        for known in package.get("vulns", []):
            fixes = ", ".join(known["fix_versions"]) or "nothing yet"
            mended += bool(known["fix_versions"])
            print(f"{package['name']} {package.get('version')}: {known['id']}, mended in {fixes}")
    print(f"{len(audited)} packages audited, {mended} vulnerabilities that a newer version mends")
    return int(mended > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
