"""More seeds than the tests run: `python -m prfaas.testing.control_world --seeds 100`. Ends at the first failure."""

from __future__ import annotations

import argparse
import sys

from prfaas.testing.control_world.menu import Coverage
from prfaas.testing.control_world.storybook import WorldFailed
from prfaas.testing.control_world.world import Setting, World


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m prfaas.testing.control_world", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--lives", type=int, default=Setting.num_lives, help="requests for each seed")
    parser.add_argument("--trouble", type=float, default=Setting.trouble, help="chance of each fault, 0 to 0.2")
    options = parser.parse_args()
    met = Coverage()
    for seed in range(options.first, options.first + options.seeds):
        world = World(seed, Setting(num_lives=options.lives, trouble=options.trouble))
        try:
            world.run()
        except WorldFailed as failure:
            sys.stderr.write(f"{failure}\n")
            return 1
        sys.stdout.write(f"seed {seed}: {world.kernel.now_s:.1f} simulated seconds, trace {world.storybook.digest}\n")
        met.add(world.coverage)
    sys.stdout.write(f"\n{met.table()}\n")
    for pair in met.unmet_faults():
        sys.stdout.write(f"never met: {pair}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
