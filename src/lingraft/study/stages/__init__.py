"""The kinds of stage that a study is made of, one file each; measures bring their own."""
