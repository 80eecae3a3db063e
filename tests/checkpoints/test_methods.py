"""The checkpoint of each method, given to the encoder of each method."""

import pytest
import torch

import tiny_models
from ropim_mm.checkpoints import CheckpointError, CoverageError, load_weights

PAIRS = [(a, b) for a in tiny_models.METHODS for b in tiny_models.METHODS]
# Of one architecture: what fits one fits the other.
BEIT = {'ropim', 'conmim'}
FAMILY = dict(
    ropim='BEiT-style',
    conmim='BEiT-style',
    rmae='plain ViT',
    lomar='ViT with iRPE',
)


def fits(source: str, target: str) -> bool:
    return source == target or {source, target} == BEIT


@pytest.fixture(scope='module')
def weights():
    return {
        method: tiny_models.build(method).state_dict()
        for method in tiny_models.METHODS
    }


@pytest.mark.parametrize('source, target', PAIRS)
def test_every_method_to_every_encoder(weights, source, target):
    encoder = tiny_models.encoder(
        target, out_type='avg_featmap', final_norm=False
    )
    before = {n: t.clone() for n, t in encoder.state_dict().items()}

    def load():
        return load_weights(
            encoder, weights[source], source='a.pth', prefix='backbone.'
        )

    if fits(source, target):
        report = load()
        assert set(report.fresh) == {'ln2.weight', 'ln2.bias'}
        assert torch.equal(
            encoder.cls_token, weights[source]['backbone.cls_token']
        )
        return
    with pytest.raises(CoverageError) as caught:
        load()
    report, text = caught.value.report, str(caught.value)
    assert report.missing or report.unexpected
    for title, names in (
        ('missing in the file', report.missing),
        ('unexpected in the file', report.unexpected),
    ):
        assert (f'{title} ({len(names)}):' in text) is bool(names)
        assert all(f'\n  {name}\n' in text for name in names)
    assert 'Nothing was loaded' in text
    assert (
        f'The file holds a {FAMILY[source]} encoder, expected was a '
        f'{FAMILY[target]} one: is it of another method?'
    ) in text
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize('source, target', PAIRS)
def test_every_method_to_every_pretraining(weights, source, target):
    """Part by part, as pictures and `load_from` do: a whole model fits none
    but its own."""
    model = tiny_models.build(target, seed=1)

    def load():
        for name, part in model.named_children():
            if part.state_dict():
                load_weights(
                    part, weights[source], source='a.pth', prefix=f'{name}.'
                )

    if source == target:
        load()
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, weights[source][name]), name
    else:
        with pytest.raises(CheckpointError, match='a.pth'):
            load()
