"""Command line of the zoo."""

import argparse

from sb3_mpc.zoo import bench


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m sb3_mpc.zoo", description="Tools around the trained agents.")
    commands = parser.add_subparsers(dest="command", required=True)
    parser_bench = commands.add_parser(
        "bench", help="measure the speed on this machine", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    bench.add_arguments(parser_bench)
    parser_bench.set_defaults(run=bench.main)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
