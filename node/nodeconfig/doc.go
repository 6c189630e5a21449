// Package nodeconfig reads what operators say of a node, and of the service around it: from a YAML file, the
// environment and flags, each over the one before.
//
// A service declares its keys once, each bound to a variable of its own; [Settings.Node] declares those of a
// [node.Config]. Then it loads:
//
//	var c node.Config
//	var listen string
//	s := nodeconfig.New("SHOP_")
//	s.Add("listen", "Address of the API, host:port.", nodeconfig.Text(&listen).Default("127.0.0.1:8080"))
//	s.Node(&c)
//	err := s.Load(nodeconfig.Layers{File: path, Environ: os.Environ()})
//	...
//	n, err := node.Open(ctx, c)
//
// A key is the path of a value in the file, joined by dots: redis.timeout. Those of a node are the fields of its Config in
// snake case. The variable of a key is the prefix and the key in capitals: SHOP_REDIS_TIMEOUT. Settings of caches
// ([node.Config].Caches) are caches.NAME.KEY, with a namespace, or namespace/view, as NAME; in a variable two underscores
// stand around and in NAME, whose letters are small ones: SHOP_CACHES__PRODUCT__TTL, SHOP_CACHES__PRODUCT__PAGE__TTL.
//
// Nothing is passed over: an unknown key, a variable with the prefix that is of no key, a value out of bounds, a value given
// twice in one layer are problems, and [Settings.Load] reports all of them at once, each with its place: line and column of
// the file, variable or flag. What a higher layer replaces is not looked at. An empty variable is one that is not given.
//
// A secret may stand in a file of its own: redis.password_file names one whose content is redis.password, without the line
// break at its end. To give both in one layer is a problem. Who else may read that file is the operator's business: mounted
// secrets are often readable by all in their container. Nothing that this package prints, errors included, shows a secret:
// not those of secret keys, nor a password in a DSN or URL, nor a line of the file whose key is unknown or whose syntax is
// wrong.
//
// In the file, anchors, aliases, tags and further documents are refused: a value stands where it is used.
package nodeconfig
