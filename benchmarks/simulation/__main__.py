"""Simulation of replicas behind a balancer: python -m benchmarks.simulation [NAME ...] [--seed N]

Names are those of scenarios (docs/scale.md); without any, all run. `--compare` measures one replica and predicts two behind
HAProxy, then measures those. Progress goes to standard error, tables to standard output.
"""

import argparse
import sys

from benchmarks.measure import progress
from benchmarks.simulation.run import Result, simulate
from benchmarks.simulation.scenario import Scenario
from benchmarks.simulation.scenarios import SCENARIOS
from benchmarks.simulation.table import table


def main() -> None:
    arguments = _arguments()
    if arguments.compare:
        # servers, torch and their like are of no use to a simulation
        from benchmarks.simulation.compare import Options, compare

        compare(Options(arguments.rounds, arguments.seconds, arguments.clients))
        return

    def run(scenario: Scenario) -> Result:
        progress(scenario.name)
        return simulate(scenario, arguments.seed)

    for name in arguments.names or SCENARIOS:
        sys.stdout.write(f"#### {name}\n\n{SCENARIOS[name].__doc__}\n\n")
        for line in table(map(run, SCENARIOS[name]())):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        sys.stdout.write("\n")
    progress("")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SCENARIOS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", action="store_true", help="measure instead, and compare with the prediction")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of --compare")
    parser.add_argument("--seconds", type=float, default=6, help="length of each measurement of --compare")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - SCENARIOS.keys():
        parser.error(f"there are no scenarios {', '.join(sorted(unknown))}")
    return arguments


if __name__ == "__main__":
    main()
