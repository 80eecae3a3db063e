"""Write the encoder of a checkpoint alone, for other tools.

Formats: mm has MMPretrain's names under "backbone.", so that
init_cfg=dict(type='Pretrained', checkpoint=DST, prefix='backbone.') works with
this project's encoders and with MMPretrain's BEiTViT (ROPIM, ConMIM) and
VisionTransformer (R-MAE); safetensors has the same names; timm has those of
timm's Beit and VisionTransformer. timm has no encoder like LoMaR's. Of a
checkpoint with a momentum copy (ConMIM) that copy is written, since it is what
fine-tuning starts from.
"""

import argparse

from ropim_mm.checkpoints.exporting import FORMATS, extract_backbone
from ropim_mm.engine.launch import report_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('src', help='a checkpoint of this project')
    parser.add_argument('dst', help='the file to write')
    parser.add_argument(
        '--format', choices=FORMATS, default='mm', help='default: mm'
    )
    parser.add_argument(
        '--student',
        action='store_true',
        help='of a checkpoint with a momentum copy write the student',
    )
    parser.add_argument(
        '--force', action='store_true', help='replace DST if it exists'
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='unpickle SRC even if that runs code from it',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with report_errors():
        summary = extract_backbone(
            args.src,
            args.dst,
            args.format,
            student=args.student,
            force=args.force,
            trust=args.trust_checkpoint,
        )
    print(summary)


if __name__ == '__main__':
    main()
