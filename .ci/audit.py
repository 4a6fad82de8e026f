"""Known vulnerabilities in the pinned dependencies, by pip-audit; `make audit` runs it.

pip-audit says "No known vulnerabilities found" also when its service knew none of the packages,
as behind a registry that serves files but no advisories. So this counts what was really audited:
findings fail, an audit that could not happen says so in one line and does not.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

UNREACHABLE = ("ConnectionError", "Could not connect", "Timeout", "ServiceError")
OPTIONS = ("--no-deps", "--disable-pip", "--progress-spinner=off", "--timeout=10", "-f", "json")
CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"


def main() -> int:
    """0 when nothing is known against the pinned versions or nobody could be asked, else 1."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "audit.json"
        command = [sys.executable, "-m", "pip_audit", "-r", CONSTRAINTS, *OPTIONS, "-o", answer]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if not answer.exists():
            if any(sign in ran.stderr for sign in UNREACHABLE):
                print("audit skipped: the vulnerability service cannot be reached from here")
                return 0
            sys.stderr.write(ran.stderr)
            return 1
        packages = json.loads(answer.read_text(encoding="utf-8"))["dependencies"]
    return judge(packages)


def judge(packages: list[dict]) -> int:
    """Print what pip-audit's JSON says of the packages; 1 if it knows a vulnerability."""
    audited = [package for package in packages if "skip_reason" not in package]
    findings = [(package, vuln) for package in audited for vuln in package["vulns"]]
    for package, vuln in findings:
        fixed = ", ".join(vuln["fix_versions"]) or "no release yet"
        print(f"{package['name']} {package['version']}: {vuln['id']}, mended in {fixed}")
    if not audited:
        print(
            f"audit skipped: the vulnerability service knew none of the {len(packages)} packages"
            " (a registry without advisories?)"
        )
    else:
        print(f"audit: {len(findings)} findings, {len(audited)} of {len(packages)} packages asked")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
