"""What experiments measure beside curves; each is a :class:`natgrad.lab.study.Study`."""
