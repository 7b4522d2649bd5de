from anchorlm.cli import main

main()
