"""From a model's name to its parts on a device; `sdpipe.components.load` is the way in.

Read in this order: `locate` (a name to a folder), `hub` (fetching it), `layout` (which files make
a model), `sources` (do the parts fit), `networks` (reading them), `single_file` (the LDM layout).
"""
