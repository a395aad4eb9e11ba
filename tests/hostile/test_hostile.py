from hostile.watch import watch

SEEDS = {"configurations": 40, "weights": 30, "images": 60, "metadata": 8, "texts": 8, "hub": 8}


def test_hostile_things_are_read_or_refused_and_nothing_else():
    """A few of what `make test-hostile` makes, always the same."""
    jobs = [(kind, 7 * seed) for kind, number in SEEDS.items() for seed in range(number)]
    counts, failures = watch(jobs, draw=False)
    assert failures == []
    for kind in SEEDS:
        assert counts[kind, "refused"]
