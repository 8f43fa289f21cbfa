"""The benchmarks of searches and of points."""

from support import patch_rooms, said

from ibp.weights import load_policy


def test_benchmark_of_searches_runs(capsys, monkeypatch):
    """In words that a person reads: one line for each policy, all integrals found by the fixed order in a small family."""
    policies, original = [], load_policy
    patch_rooms(monkeypatch, "ibp", "load_policy", lambda source: policies.append(source) or original(source))
    words = ["benchmark-search", "3", "--family", "bubble", "--policy", "fixed", "--beam-width", "2", "--seed", "7", "--quiet"]
    printed = said(capsys, words, 0)
    assert set(policies) == {"fixed", "random 7"}
    lines = printed.splitlines()
    assert "3 integrals of bubble, width 2" in lines[0] and [line.split()[0] for line in lines[2:]] == ["trained", "random", "fixed"]
    assert all("100.0%" in line for line in lines[2:])


def test_benchmark_of_points(place, capsys):
    printed = said(capsys, ["benchmark-points", "12", "--family", "bubble", "--integral", "3,2", "--quiet"], 0)
    assert [line.split()[0] for line in printed.splitlines()[2:]] == ["1", "2", "5", "10", "12"]
