"""From a model's name to its networks; `sdpipe.components.load` is the way in.

In reading order: `locate` (from a name to a folder), `hub` (downloads), `layout` (the files of a
model), `configs` and `weights` (reading them), `sources` (where each part comes from),
`compatibility` (do the parts fit), `networks` (building them), `single_file` (LDM checkpoints),
`lora` and `textual_inversion` (additions), `safety_checker`, `parts` (single parts, without torch).
"""
