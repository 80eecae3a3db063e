"""Names and shapes are compared before anything is loaded."""

import pytest
import torch
from torch import Tensor, nn

from ropim_mm.checkpoints import CheckpointError, CoverageError, load_weights
from ropim_mm.checkpoints.coverage import find_state_dict


class Encoder(nn.Module):
    """Two layers, a pooled norm that pretraining lacks, an index buffer."""

    fresh_keys = ('ln2.',)
    pretraining_only_keys = ('ln1.', 'mask_token')

    def __init__(self, depth: int = 2, width: int = 4) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.layers = nn.ModuleList(
            nn.Linear(width, width) for _ in range(depth)
        )
        self.ln2 = nn.LayerNorm(width)
        self.register_buffer('relative_position_index', torch.arange(depth))


def weights(depth: int = 2, width: int = 4) -> dict[str, Tensor]:
    """What pretraining leaves: no ln2, but ln1 and an own index."""
    state = {
        'cls_token': torch.full((1, 1, width), 1.0),
        'ln1.weight': torch.ones(width),
        'relative_position_index': torch.arange(99),
    }
    for i in range(depth):
        state[f'layers.{i}.weight'] = torch.full((width, width), 2.0 + i)
        state[f'layers.{i}.bias'] = torch.full((width,), 3.0 + i)
    return state


def under(prefix: str, state: dict) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def test_report_counts():
    module = Encoder()
    report = load_weights(module, weights(), source='a.pth')
    assert report.matched == (
        'cls_token',
        'layers.0.weight',
        'layers.0.bias',
        'layers.1.weight',
        'layers.1.bias',
    )
    assert report.fresh == ('ln2.weight', 'ln2.bias')
    assert report.superfluous == ('ln1.weight',)
    assert (report.total, report.parameters) == (7, 44)
    assert report.total_parameters == 52
    assert str(report) == (
        'Encoder from a.pth: matched 5 of 7 tensors, 44 of 52 parameters\n'
        '  left as initialised: ln2.weight, ln2.bias\n'
        '  not used from the file: ln1.weight'
    )
    assert module.layers[1].bias.tolist() == [4, 4, 4, 4]
    # The index belongs to the shape of the model, not to the file.
    assert module.relative_position_index.tolist() == [0, 1]


def test_missing_tensor_stops_and_changes_nothing():
    module = Encoder()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    state = weights()
    del state['layers.1.weight'], state['cls_token']
    with pytest.raises(CoverageError) as caught:
        load_weights(module, state, source='a.pth', prefix='')
    assert caught.value.report.missing == ('cls_token', 'layers.1.weight')
    message = str(caught.value)
    assert message.startswith(
        'a.pth does not fit Encoder: matched 3 of 7 tensors, 24 of 52 '
        'parameters. Nothing was loaded.\n'
        'missing in the file (2):\n  cls_token\n  layers.1.weight\n'
    )
    assert 'init_cfg.skip_keys' in message
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_deeper_checkpoint_stops():
    with pytest.raises(CoverageError) as caught:
        load_weights(Encoder(depth=2), weights(depth=3), source='a.pth')
    assert caught.value.report.unexpected == (
        'layers.2.weight',
        'layers.2.bias',
    )
    assert 'unexpected in the file (2):\n  layers.2.weight' in str(
        caught.value
    )


def test_other_shape_stops():
    state = weights()
    state['layers.0.weight'] = torch.ones(8, 4)
    with pytest.raises(CoverageError) as caught:
        load_weights(Encoder(), state, source='a.pth')
    assert caught.value.report.mismatched == (
        ('layers.0.weight', (8, 4), (4, 4)),
    )
    assert (
        'other shape in the file (1):\n'
        '  layers.0.weight: found (8, 4), expected (4, 4)'
    ) in str(caught.value)


def test_fresh_keys_may_be_left_over_as_well():
    """The pooled norm of a classifier, given to a segmentor."""
    module = Encoder()
    module.ln2 = nn.Identity()
    state = {**weights(), 'ln2.weight': torch.ones(4)}
    report = load_weights(module, state, source='a.pth')
    assert report.superfluous == ('ln1.weight', 'ln2.weight')


def test_skip_keys_leave_tensors_as_they_are():
    module = Encoder()
    state = weights()
    state['layers.1.weight'] = torch.ones(9, 9)
    del state['layers.1.bias']
    report = load_weights(
        module, state, source='a.pth', skip_keys=['layers.1']
    )
    assert report.fresh == (
        'layers.1.weight',
        'layers.1.bias',
        'ln2.weight',
        'ln2.bias',
    )
    assert 'skipped on request: layers.1' in str(report)
    assert module.layers[0].bias.tolist() == [3, 3, 3, 3]
    assert not torch.equal(module.layers[1].weight, state['cls_token'])


def test_skip_keys_match_whole_components():
    with pytest.raises(ValueError, match="skip_keys: 'layer' names no tensor"):
        load_weights(Encoder(), weights(), source='a.pth', skip_keys=['layer'])


@pytest.mark.parametrize('prefix', ['backbone.', 'backbone'])
def test_prefix(prefix):
    state = under('backbone.', weights())
    state['neck.weight'] = torch.ones(1)
    report = load_weights(Encoder(), state, source='a.pth', prefix=prefix)
    assert len(report.matched) == 5
    assert report.notes == ()


def test_extracted_encoder_has_no_prefix():
    report = load_weights(
        Encoder(), weights(), source='a.pth', prefix='backbone.'
    )
    assert len(report.matched) == 5
    assert report.notes == (
        "the file has no prefix 'backbone.': its names are used as is",
    )


def test_nothing_under_the_prefix():
    state = under('model.backbone.', weights())
    state['model.head.weight'] = torch.ones(1)
    state['queue'] = torch.ones(1)
    for prefix in ('backbone.', ''):
        with pytest.raises(CheckpointError) as caught:
            load_weights(Encoder(), state, source='a.pth', prefix=prefix)
        assert str(caught.value) == (
            f'a.pth holds no tensor of Encoder under the prefix {prefix!r}. '
            "Found the prefixes 'model.' (8 tensors), 'queue.' (1 tensors). "
            "The names fit with prefix='model.backbone.'."
        )


def test_released_names_are_recognised():
    state = {'encoder.cls_token': torch.ones(1), 'encoder.blocks.0.norm1.b': 0}
    state['encoder.blocks.0.norm1.bias'] = torch.ones(1)
    with pytest.raises(CheckpointError, match='official_to_mm.py METHOD'):
        load_weights(Encoder(), state, source='a.pth', prefix='backbone.')
    fine_tuned = {'cls_token': torch.ones(1, 1, 4)}
    fine_tuned['blocks.0.norm1.bias'] = torch.ones(1)
    with pytest.raises(CoverageError, match='official_to_mm.py METHOD'):
        load_weights(Encoder(), fine_tuned, source='a.pth')


@pytest.mark.parametrize(
    'wrap',
    [
        lambda s: s,
        lambda s: {'state_dict': s, 'meta': {}},
        lambda s: {'model': s, 'epoch': 3},
        lambda s: {'module': s},
        lambda s: {'model': {'module': s}},
        lambda s: {'state_dict': under('module.', s)},
    ],
)
def test_entries_that_hold_weights(wrap):
    report = load_weights(Encoder(), wrap(weights()), source='a.pth')
    assert len(report.matched) == 5


def test_no_weights_at_all():
    with pytest.raises(CheckpointError) as caught:
        find_state_dict({'epoch': 1, 'optimizer': {}}, 'a.pth')
    assert str(caught.value).startswith(
        "a.pth holds no weights. Found the entries ['epoch', 'optimizer']"
    )
    twice = {'w': torch.ones(1), 'module.w': torch.ones(1)}
    with pytest.raises(CheckpointError, match='both w and module.w'):
        find_state_dict(twice, 'a.pth')


def test_adapting_comes_first_and_its_errors_name_the_file():
    class Adapting(Encoder):
        def adapt_state_dict(self, state_dict: dict, prefix: str = '') -> dict:
            state = dict(state_dict)
            if state['cls_token'].shape[-1] == 3:
                raise ValueError('3 is too narrow')
            state['cls_token'] = state['cls_token'][..., :4]
            return state

    wide = {**weights(), 'cls_token': torch.arange(8.0).view(1, 1, 8)}
    module = Adapting()
    load_weights(module, wide, source='a.pth')
    assert module.cls_token.flatten().tolist() == [0, 1, 2, 3]
    assert wide['cls_token'].shape == (1, 1, 8)
    narrow = {**weights(), 'cls_token': torch.ones(1, 1, 3)}
    with pytest.raises(CheckpointError, match='a.pth: 3 is too narrow'):
        load_weights(module, narrow, source='a.pth')


def test_hooks_that_lose_weights_are_noticed():
    module = Encoder()
    module._register_load_state_dict_pre_hook(
        lambda state, *args: state.pop('cls_token')
    )
    with pytest.raises(CheckpointError, match=r"untouched \['cls_token'\]"):
        load_weights(module, weights(), source='a.pth')
