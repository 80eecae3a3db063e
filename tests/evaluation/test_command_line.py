"""Argument types and files of the measuring tools."""

import argparse
import json

import pytest

from ropim_mm.evaluation.command_line import natural, positive, write_json


def test_numbers():
    assert natural('0') == 0
    assert positive('3') == 3
    with pytest.raises(argparse.ArgumentTypeError, match='-1 is negative'):
        natural('-1')
    with pytest.raises(argparse.ArgumentTypeError, match='0 is not positive'):
        positive('0')


def test_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ('here.json', str(tmp_path / 'new/folder/there.json')):
        write_json(path, dict(a=[1.5]))
        with open(path) as file:
            text = file.read()
        assert json.loads(text) == dict(a=[1.5])
        assert text.endswith('}\n')
