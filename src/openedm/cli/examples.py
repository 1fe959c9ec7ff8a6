"""What the help of a command begins with: lines to copy, and the options that most people need."""

from collections.abc import Mapping, Sequence

EXAMPLES: Mapping[str, Sequence[str]] = {
    "train": (
        "openedm train runs/digits",
        "openedm train runs/photos --data ImageFolder --data.path photos",
        "openedm train runs/series --data data.npy --network DiT --options.images 200000",
        "openedm train runs/photos --resume true",
        "openedm train runs/cifar --preset cifar10-ddpmpp --data ImageFolder --data.path cifar10",
    ),
    "sample": (
        "openedm sample runs/photos samples --seeds 0-999",
        "openedm sample runs/photos grid.png --classes cat,dog --guidance.weight 2",
        "openedm sample runs/photos samples.npz --nfe 12",
        "openedm sample runs/photos samples --sampler.solver Heun --sampler.levels.num_steps 18",
    ),
    "distill": (
        "openedm distill runs/photos runs/photos-fast",
        "openedm distill runs/photos runs/guided --objective.guidance 2",
        "openedm distill runs/photos runs/photos-fast --options.images 2000000 --dropout 0.2",
        "openedm distill runs/photos runs/photos-fast --resume true",
    ),
    "evaluate": (
        "openedm evaluate runs/photos --data ImageFolder --data.path photos --num 5000",
        "openedm evaluate samples --data ImageFolder --data.path photos --out report.json",
    ),
    "compare": (
        "openedm compare runs/a runs/b",
        "openedm compare runs/a runs/b --num 1000 --figure comparison.png",
        "openedm compare runs/a --num 1000 --vary nfe=8,16,32",
        "openedm compare runs/a --num 1000 --vary sampler.solver=Heun,Euler --out comparison.md",
    ),
    "sweep": (
        "openedm sweep runs/objectives --config base.yaml --vary objective=EDM,VP,VE --num 1000",
        "openedm sweep runs/rates --network MLP --vary options.learning_rate=1e-3,2e-3 --vary options.seed=0,1,2",
        "openedm sweep runs/objectives --config base.yaml --vary objective=EDM,VP --dry_run true",
        "openedm sweep runs/objectives --config base.yaml --vary objective=EDM,VP --slurm jobs.sh",
    ),
    "likelihood": (
        "openedm likelihood runs/digits --data Digits --data.split test",
        "openedm likelihood runs/series --data held_out.npy --out nats.npz",
    ),
    "suggest": (
        "openedm suggest Digits",
        "openedm suggest data.npy --figure reducible.png",
    ),
    "paper": (
        "openedm paper",
        "openedm paper figures --figures errors,churn",
    ),
    "explore": (
        "openedm explore",
        "openedm explore runs/photos",
        "openedm explore runs/a runs/b --view compare --sampler.solver Euler",
        "openedm explore --sampler.schedule VP --sampler.levels.num_steps 9 --port 9000",
    ),
    "toy": (
        "openedm toy",
        "openedm toy runs/rings --data.name rings",
    ),
    "convert": (
        "openedm convert edm-cifar10-32x32-cond-vp.pkl checkpoints/cifar10",
        "openedm convert runs/photos photos.safetensors",
    ),
    "push": (
        "openedm push runs/photos someone/photos --private true",
        "openedm push runs/photos someone/photos --out for-the-hub",
    ),
    "ema": ("openedm ema runs/photos averages/narrow --sigma_rel 0.05",),
    "info": ("openedm info runs/photos", "openedm info presets"),
    "verify": (
        "openedm verify runs/photos",
        "openedm verify runs/photos --accept true",
    ),
    "demo": ("openedm demo",),
    "data convert": (
        "openedm data convert photos shards --size 64",
        "openedm data convert photos.zip shards --size 64x128 --crop pad",
        "openedm train runs/photos --data Shards --data.path shards",
    ),
    "data encode": (
        "openedm data encode photos latents --vae stabilityai/sd-vae-ft-mse --size 256",
        "openedm data encode shards latents --vae autoencoder --scaling edm2 --batch_size 64",
        "openedm train runs/latents --data Latents --data.path latents",
    ),
    "inference simulate": (
        "openedm inference simulate runs/sims --simulator my.py:run --prior Box --prior.low [0,0] --prior.high [1,5]",
        "openedm inference simulate runs/sims --task two_moons --num 10000 --workers -1",
    ),
    "inference fit": (
        "openedm inference fit runs/sims posterior",
        "openedm inference fit data.npz posterior --prior Box --prior.low [0,0] --prior.high [1,5]",
    ),
    "inference sample": (
        "openedm inference sample posterior samples.npz --x=-1.0,2.0 --figure pairs.png",
        "openedm inference sample posterior samples.npz --x observations.npy --num_samples 1000",
    ),
    "inference log_prob": ("openedm inference log_prob posterior --x=-1.0,2.0 --theta=0.1,0.4",),
    "inference map": ("openedm inference map posterior --x=-1.0,2.0",),
    "inference check": (
        "openedm inference check posterior --x=-1.0,2.0",
        "openedm inference check posterior --x=-1.0,2.0 --simulator model.py:run --figure check.png",
    ),
    "inference calibrate": (
        "openedm inference calibrate posterior --task two_moons",
        "openedm inference calibrate posterior --simulations others --figure calibration.png",
    ),
    "inference benchmark": ("openedm inference benchmark --task two_moons,slcp --simulations 1000",),
}
"""Command lines for each command."""

COMMON: Mapping[str, Sequence[str]] = {
    "train": (
        "data",
        "data.path",
        "budget",
        "network",
        "options.images",
        "options.batch_size",
        "options.label_dropout",
        "guidance.weight",
        "resume",
        "init",
        "preset",
    ),
    "sample": ("seeds", "classes", "conditions", "nfe", "tolerance", "guidance.weight", "format", "batch_size"),
    "evaluate": ("data", "data.path", "num", "nfe", "guidance.weight", "out"),
    "compare": ("vary", "num", "losses", "data", "format", "out", "figure"),
    "sweep": ("vary", "num", "dry_run", "slurm"),
    "explore": ("view", "sampler.solver", "sampler.levels.num_steps", "port", "browser"),
    "likelihood": ("data", "data.path", "num", "out"),
    "data convert": ("size", "crop", "labels", "channels", "resume"),
    "data encode": ("vae", "size", "scaling", "mirror", "batch_size", "device", "resume"),
    "inference simulate": ("num", "simulator", "prior", "task", "workers"),
    "inference sample": ("x", "num_samples", "figure", "truth"),
    "inference check": ("x", "simulator", "simulations", "figure"),
}
"""The options that the page of a command shows first."""
