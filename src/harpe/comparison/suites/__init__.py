"""What is measured of every row of a comparison: one file a suite, and a line in `registry`. How it is measured is in
`harpe.suites`."""
