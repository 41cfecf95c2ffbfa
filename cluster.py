"""Run a script once for every combination of values, as jobs on this machine or on a Slurm cluster (submitit).

    python cluster.py --executor slurm --over model gpt2 EleutherAI/pythia-70m -- main_llm.py --exp2 --nsamples 30
    python cluster.py --executor local --over model gpt2 --over head 0 1 2 -- compare_3d_before_after_pruning.py

Every job has its own folder below --savedir; logs are in its `jobs`. Needs `pip install -r requirements-cluster.txt`.
Waits for all jobs, and ends with exit code 1 if one fails; a Slurm job goes on where this is interrupted.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

from lib.report import result_files
from lib.run import checkout, cli


def commands(over: list[list[str]], script: list[str], savedir: Path) -> Iterator[tuple[str, list[str]]]:
    """[(name, command line)] of every combination of `over`, [[flag, value, ...], ...]."""
    flags = [flag for flag, *_values in over]
    for values in itertools.product(*(values for _flag, *values in over)):
        pairs = list(zip(flags, values, strict=True))
        name = "_".join(f"{flag}-{value.strip('/').replace('/', '-')}" for flag, value in pairs)
        chosen = [text for flag, value in pairs for text in (f"--{flag}", value)]
        path, *arguments = script
        yield name, [sys.executable, str(checkout.ROOT / path), *arguments, *chosen, "--savedir", str(savedir / name)]


def number_or_text(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def main() -> None:
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--executor", choices=["local", "slurm"], default="local", help="where jobs run")
    parser.add_argument(
        "--over", nargs="+", action="append", required=True, metavar=("FLAG", "VALUE"), help="a flag and its values"
    )
    parser.add_argument(
        "--parameters",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="of submitit, for example timeout_min=600 gpus_per_node=1 slurm_partition=gpu (default: timeout_min=60)",
    )
    parser.add_argument("--savedir", type=cli.path, default=Path("results/cluster"), help="default: %(default)s")
    parser.add_argument("script", nargs="+", help="after --, the script and its flags")
    args = parser.parse_args()
    if not (checkout.ROOT / args.script[0]).is_file():
        raise cli.UserError(f"no such script: {args.script[0]}")
    typed = {text.partition("=")[0] for text in args.script if text.startswith("--")}
    for flag, where in [("savedir", "before the --"), *((flag, "by --over") for flag, *_values in args.over)]:
        if f"--{flag}" in typed:
            raise cli.UserError(f"--{flag} of the script would do nothing: each job's is given {where}")
    if not all("=" in pair for pair in args.parameters):
        raise cli.UserError("--parameters are KEY=VALUE")
    result_files.check_writable(args.savedir)
    try:
        import submitit
    except ImportError as error:
        raise cli.UserError("submitit is not installed; run: pip install -r requirements-cluster.txt") from error

    savedir = args.savedir.resolve()
    given = dict(pair.split("=", 1) for pair in args.parameters)
    try:
        executor = submitit.AutoExecutor(folder=savedir / "jobs", cluster=args.executor)
        executor.update_parameters(**{"timeout_min": 60} | {key: number_or_text(value) for key, value in given.items()})
    except (NameError, TypeError, ValueError, RuntimeError) as error:
        raise cli.UserError(f"submitit: {cli.cause(error)}") from error
    named = list(commands(args.over, args.script, savedir))
    with executor.batch():
        jobs = [executor.submit(submitit.helpers.CommandFunction(command)) for _name, command in named]
    failed = 0
    for (name, _command), job in zip(named, jobs, strict=True):
        failure = job.exception()
        failed += failure is not None
        print(
            f"{'failed' if failure else 'done'}  job {job.job_id}  {savedir / name}  log {job.paths.stderr}", flush=True
        )
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    cli.main(main)
