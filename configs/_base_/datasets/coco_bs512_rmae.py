# COCO train2017, without its annotations. Label maps of three scales:
#   python tools/dataset_converters/create_fh_masks.py \
#       data/coco/train2017 data/coco/fh_train2017 --scales 500,1000,1500
_base_ = './imagenet_bs512_rmae.py'

train_dataloader = dict(
    dataset=dict(
        data_root='data/coco/',
        data_prefix=dict(img_path='train2017', region_path='fh_train2017'),
    )
)
