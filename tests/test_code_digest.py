"""What decides whether a stored result may be used again."""

import sys

from lib import report


def test_the_digest_of_the_code_covers_what_measures(tmp_path, monkeypatch):
    """Wherever it lies; and nothing that only draws or judges."""
    files = ["script.py", "lib/stats.py", "lib/room/deep/hooks.py", "experiments/one/measure.py", "lib/plots.py"]
    files += ["lib/judges/one.py"]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["/elsewhere/script.py"])
    digests = [report.code_sha256()]
    for name in files:
        (tmp_path / name).write_text("2")
        digests.append(report.code_sha256())
    assert len(set(digests[:5])) == 5
    assert len(set(digests[4:])) == 1
    (tmp_path / "lib/room/deep/hooks.py").rename(tmp_path / "lib/room/hooks.py")
    assert report.code_sha256() != digests[-1]
