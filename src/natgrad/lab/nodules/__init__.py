"""The lung-nodule experiments of the SNGD paper: generated scans, data sets, networks, scores."""
