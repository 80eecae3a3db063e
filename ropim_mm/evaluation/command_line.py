"""What the measuring tools share: argument types, files of results."""

import argparse
import json
import os


def natural(text: str) -> int:
    """An argument that is 0 or more.

    Raises:
        argparse.ArgumentTypeError: It is negative.
    """
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f'{value} is negative')
    return value


def positive(text: str) -> int:
    """An argument that is 1 or more.

    Raises:
        argparse.ArgumentTypeError: It is 0 or negative.
    """
    value = natural(text)
    if value == 0:
        raise argparse.ArgumentTypeError('0 is not positive')
    return value


def write_json(path: str, report: dict) -> None:
    """Write results; the folder is made where it is missing."""
    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    with open(path, 'w', encoding='utf-8') as file:
        json.dump(report, file, indent=2)
        file.write('\n')
