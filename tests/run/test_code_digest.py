"""What decides whether a stored result may be used again."""

import sys

from lib.run import checkout


def test_what_does_not_measure_lies_where_it_is_said_to():
    assert [name for name in checkout.NOT_MEASURING if not (checkout.ROOT / "lib" / name).exists()] == []


def digest_of_another_run():
    checkout._digest.cache_clear()
    return checkout.code_sha256()


def test_the_digest_of_the_code_covers_what_measures(tmp_path, monkeypatch):
    """Wherever it lies; and nothing that only draws or judges."""
    measuring = ["script.py", "lib/stats.py", "lib/room/deep/hooks.py"]
    measuring += [f"experiments/one/{name}.py" for name in ("measure", "sites", "deep/any")]
    files = [*measuring, "lib/claims/heads.py", "lib/core/evidence.py"]
    files += [f"experiments/one/{name}.py" for name in ("judge", "text", "figures", "views")]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["/elsewhere/script.py"])
    digests = [digest_of_another_run()]
    for name in files:
        (tmp_path / name).write_text("2")
        assert checkout.code_sha256() == digests[-1], "the code that runs is still the same"
        digests.append(digest_of_another_run())
    changed = 1 + len(measuring)
    assert len(set(digests[:changed])) == changed
    assert len(set(digests[changed - 1 :])) == 1
    (tmp_path / "lib/room/deep/hooks.py").rename(tmp_path / "lib/room/hooks.py")
    assert digest_of_another_run() != digests[-1]
