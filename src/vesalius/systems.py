"""What there is: the systems that Vesalius rebuilds, what each is for, whom to cite, the licence of its weights."""

from __future__ import annotations

from dataclasses import dataclass

from vesalius.errors import ConfigError, nearest


@dataclass(frozen=True)
class System:
    """A published system.

    Args:
        name: as the command line knows it.  chapter: pretrain, adapt or curate.
        title: one line on what it is.  idea: two sentences on how it works.
        weights: which published files load.  licence: of the authors' code and weights.
        doi: of the paper.  bibtex: the entry to cite.
    """

    name: str
    chapter: str
    title: str
    idea: str
    weights: str
    licence: str
    doi: str
    bibtex: str


SYSTEMS = {
    "usfm": System(
        name="usfm",
        chapter="pretrain",
        title="a universal ultrasound foundation model: restore images masked in space and in frequency",
        idea=(
            "Blocks of pixels are replaced by the image's mean and rings of its Fourier spectrum are stopped; a ViT "
            "restores both, with a loss in both domains. Organs are drawn evenly, however unequal their numbers."
        ),
        weights="USFM_latest.pth (shared or per-block tables), fine-tuned classifiers, SegViT, pyramid, SimMIM layouts",
        licence="CC-BY-NC 4.0 (authors' code and weights)",
        doi="10.1016/j.media.2024.103202",
        bibtex="""@article{jiao2024usfm,
  title   = {{USFM}: A universal ultrasound foundation model generalized to tasks and organs
             towards label efficient image analysis},
  author  = {Jiao, Jing and Zhou, Jin and Li, Xiaokang and Xia, Menghua and Huang, Yi and Huang, Lihong
             and Wang, Na and Zhang, Xiaofan and Zhou, Shichong and Wang, Yuanyuan and Guo, Yi},
  journal = {Medical Image Analysis},
  volume  = {96},
  pages   = {103202},
  year    = {2024},
  doi     = {10.1016/j.media.2024.103202}
}""",
    ),
    "deblurring": System(
        name="deblurring",
        chapter="pretrain",
        title="deblurring masked image modelling: see a blurred, masked image, restore the sharp one",
        idea=(
            "Every image is blurred before it is masked, and the decoder restores the sharp original everywhere, so "
            "that the encoder learns fine detail under speckle; images are blurred in the same way ever after. The "
            "encoder is a plain ViT or a hierarchical one with masked convolutions whose scales are fused."
        ),
        weights="(Deblurring) MAE and ConvMAE checkpoints, the fine-tuned TN3K U-Net++ as a state dict, MAE_S encoders",
        licence="CC-BY-NC 4.0 (authors' code and weights)",
        doi="10.1016/j.media.2024.103256",
        bibtex="""@article{kang2024deblurring,
  title   = {Deblurring masked image modeling for ultrasound image analysis},
  author  = {Kang, Qingbo and Lao, Qicheng and Gao, Jun and Liu, Jingyan and Yi, Huahui and Ma, Buyun
             and Zhang, Xiaofan and Li, Kang},
  journal = {Medical Image Analysis},
  volume  = {97},
  pages   = {103256},
  year    = {2024},
  doi     = {10.1016/j.media.2024.103256}
}""",
    ),
    "ept": System(
        name="ept",
        chapter="adapt",
        title="embedded prompt tuning: learned logits that take part in every softmax of a frozen transformer",
        idea=(
            "Every token of every layer gets learned logits that join its softmax and are then dropped, so that its "
            "attention no longer sums to one; they and a linear head are all that trains. It is meant for one to ten "
            "labelled cases a class, and stands beside every method that it must beat and its own untrained prompts."
        ),
        weights="files of the authors' code (mmcls layout), with EPT's prompts, VPT's or none; none is published",
        licence="Apache 2.0 by the README of the authors' code, whose licence file is missing",
        doi="10.1016/j.media.2024.103258",
        bibtex="""@article{zu2024embedded,
  title   = {Embedded prompt tuning: Towards enhanced calibration of pretrained models
             for medical images},
  author  = {Zu, Wenqiang and Xie, Shenghao and Zhao, Qing and Li, Guoqi and Ma, Lei},
  journal = {Medical Image Analysis},
  volume  = {97},
  pages   = {103258},
  year    = {2024},
  doi     = {10.1016/j.media.2024.103258}
}""",
    ),
    "brainsegfounder": System(
        name="brainsegfounder",
        chapter="pretrain",
        title="brains in two stages: a 3-D encoder learns healthy ones first, and then those with the disease",
        idea=(
            "Crops of a scan are turned and corrupted; a Swin encoder tells the turn, recognises the other view of the "
            "same crop and restores it. A second stage does the same with unlabelled scans of the disease at hand, and "
            "Swin UNETR is then fine-tuned with labels."
        ),
        weights="pre-trained (UK Biobank, BraTS, ATLAS) and fine-tuned (BraTS, ATLAS) state dicts; pickles are refused",
        licence="UK Biobank Material Transfer Agreement (weights), GPL-3 (authors' code)",
        doi="10.1016/j.media.2024.103301",
        bibtex="""@article{cox2024brainsegfounder,
  title   = {{BrainSegFounder}: Towards {3D} foundation models for neuroimage segmentation},
  author  = {Cox, Joseph and Liu, Peng and Stolte, Skylar E. and Yang, Yunchao and Liu, Kang and See, Kyle B.
             and Ju, Huiwen and Fang, Ruogu},
  journal = {Medical Image Analysis},
  volume  = {97},
  pages   = {103301},
  year    = {2024},
  doi     = {10.1016/j.media.2024.103301}
}""",
    ),
    "universal": System(
        name="universal",
        chapter="pretrain",
        title="the Universal Model: one network for organs and tumours, from datasets that each label some of them",
        idea=(
            "The embedding of a class's name and the volume's own features write the weights of a tiny network for "
            "that class. The loss counts only what a dataset labels, so that sets join by the names of their classes, "
            "and a new class is a new row of text."
        ),
        weights="Universal Model checkpoints (U-Net, Swin UNETR, UNet++, DiNTS layouts), class-specific heads, SuPreM",
        licence="Johns Hopkins University licence: research only (authors' code and weights)",
        doi="10.1016/j.media.2024.103226",
        bibtex="""@article{liu2024universal,
  title   = {Universal and extensible language-vision models for organ segmentation and tumor
             detection from abdominal computed tomography},
  author  = {Liu, Jie and Zhang, Yixiao and Wang, Kang and Yavuz, Mehmet Can and Chen, Xiaoxi and Yuan, Yixuan
             and Li, Haoliang and Yang, Yang and Yuille, Alan and Tang, Yucheng and Zhou, Zongwei},
  journal = {Medical Image Analysis},
  volume  = {97},
  pages   = {103226},
  year    = {2024},
  doi     = {10.1016/j.media.2024.103226}
}""",
    ),
    "abdomenatlas": System(
        name="abdomenatlas",
        chapter="curate",
        title="AbdomenAtlas: models propose masks, people correct where they disagree, round by round",
        idea=(
            "Where several models contradict each other, are unsure, or claim a voxel for two structures, they are "
            "likely to be wrong. Volumes are ranked by that attention map, a reader revises the first few, the models "
            "train on the revisions, and public labels, revisions and proposals become one dataset."
        ),
        weights="the ensemble's networks are Universal Model and SuPreM checkpoints",
        licence="masks CC BY-NC-SA 4.0; networks as the Universal Model's",
        doi="10.1016/j.media.2024.103285",
        bibtex="""@article{li2024abdomenatlas,
  title   = {{AbdomenAtlas}: A large-scale, detailed-annotated, \\& multi-center dataset for efficient
             transfer learning and open algorithmic benchmarking},
  author  = {Li, Wenxuan and Qu, Chongyu and Chen, Xiaoxi and Bassi, Pedro R. A. S. and Shi, Yijia and Lai, Yuxiang
             and Yu, Qian and Xue, Huimin and Chen, Yixiong and Lin, Xiaorui and others},
  journal = {Medical Image Analysis},
  volume  = {97},
  pages   = {103285},
  year    = {2024},
  doi     = {10.1016/j.media.2024.103285}
}""",
    ),
    "sam3d": System(
        name="sam3d",
        chapter="adapt",
        title="3DSAM-adapter: Segment Anything on volumes, one click a tumour",
        idea=(
            "SAM's frozen 2-D weights attend within 3-D windows, with a third table of positions and a light 3-D "
            "convolution in every block; a click is the feature at its place. Clicks that are far apart get crops of "
            "their own, which are merged; labels and places of clicks, which the published network lacks, are options."
        ),
        weights="the authors' best.pth.tar and last.pth.tar, with clicks or without, both ways; SAM's as the base",
        licence="not stated (authors' code and weights); Apache 2.0 (SAM)",
        doi="10.1016/j.media.2024.103324",
        bibtex="""@article{gong2024sam3d,
  title   = {{3DSAM-adapter}: Holistic adaptation of {SAM} from {2D} to {3D} for promptable tumor segmentation},
  author  = {Gong, Shizhan and Zhong, Yuan and Ma, Wenao and Li, Jinpeng and Wang, Zhao and Zhang, Jingyang
             and Heng, Pheng-Ann and Dou, Qi},
  journal = {Medical Image Analysis},
  volume  = {98},
  pages   = {103324},
  year    = {2024},
  doi     = {10.1016/j.media.2024.103324}
}""",
    ),
    "masam": System(
        name="masam",
        chapter="adapt",
        title="MA-SAM: Segment Anything on stacks of slices, without prompts or within a box",
        idea=(
            "SAM's frozen encoder reads neighbouring slices as a batch; two bottlenecks in every block, whose middle "
            "convolution runs along the slices, and low-rank increments of query and value (FacT) train. A decoder "
            "with a token a class works at full resolution; a slice's scores are means over the stacks around it."
        ),
        weights="the authors' epoch_*.pth (adapters, FacT, decoder), boxes or none, both ways; SAM's as the base",
        licence="not stated (authors' code and weights); Apache 2.0 (SAM)",
        doi="10.1016/j.media.2024.103310",
        bibtex="""@article{chen2024masam,
  title   = {{MA-SAM}: Modality-agnostic {SAM} adaptation for {3D} medical image segmentation},
  author  = {Chen, Cheng and Miao, Juzheng and Wu, Dufan and Yan, Zhiling and Kim, Sekeun and Hu, Jiang
             and Zhong, Aoxiao and Liu, Zhengliang and Sun, Lichao and Li, Xiang and Liu, Tianming and Heng, Pheng-Ann
             and Li, Quanzheng},
  journal = {Medical Image Analysis},
  volume  = {98},
  pages   = {103310},
  year    = {2024},
  doi     = {10.1016/j.media.2024.103310}
}""",
    ),
}


def info(name: str) -> System:
    """The system called `name`.

    Raises:
        ConfigError: there is none; the nearest is named.

    >>> info("usfm").doi
    '10.1016/j.media.2024.103202'
    """
    if name not in SYSTEMS:
        raise ConfigError(f"no system is called {name!r}", remedy=nearest(name, SYSTEMS))
    return SYSTEMS[name]
