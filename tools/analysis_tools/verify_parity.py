"""Run every case of a directory of reference vectors through this project.

Prints each compared quantity with its largest errors. Exit status 1 if one is
out of tolerance or a case was not run to its end.
"""

import argparse
import sys

import torch

from ropim_mm.evaluation.parity import run_directory


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'directory', help='folder with manifest.json and the .npz files'
    )
    parser.add_argument(
        '--quiet',
        action='store_true',
        help='print only the cases, and quantities out of tolerance',
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    torch.set_num_threads(1)
    passed = failed = quantities = 0
    worst = 0.0
    try:
        for result in run_directory(args.directory):
            print(f'{result.name}: {"ok" if result.ok else "FAILED"}')
            for item in result.comparisons:
                quantities += 1
                worst = max(worst, item.excess)
                if args.quiet and item.ok:
                    continue
                print(
                    f'  {"ok  " if item.ok else "FAIL"} {item.name:60s} '
                    f'abs {item.abs_error:.2e} rel {item.rel_error:.2e} '
                    f'of tolerance {item.excess:.3f} {item.note}'
                )
            if result.unused:
                print(f'  stored, but not compared: {result.unused}')
            if result.error:
                print(f'  not run to its end:\n{result.error}')
            elif not result.comparisons:
                print('  nothing was compared')
            passed, failed = passed + result.ok, failed + (not result.ok)
    except (FileNotFoundError, ValueError) as error:
        print(f'verify_parity: {error}', file=sys.stderr)
        return 1
    print(
        f'{passed} cases passed, {failed} failed; {quantities} quantities, '
        f'largest error {worst:.3f} of its tolerance'
    )
    return 1 if failed or not passed else 0


if __name__ == '__main__':
    sys.exit(main())
