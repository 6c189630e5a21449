package shop

// A department is what the names, texts and prices of one category's products are made of.
type department struct {
	name      string
	median    float64 // price in the middle, in units of the currency
	spread    float64 // standard deviation of the price's logarithm
	nouns     []string
	materials []string
	uses      []string
}

var (
	// departments are ordered by size: the first gets the most products.
	departments = []department{
		{"Cookware", 39, .7, []string{"Saucepan", "Frying Pan", "Stock Pot", "Casserole", "Wok", "Griddle", "Roasting Tin", "Steamer"}, cookingMetals, kitchenUses},
		{"Kitchen Knives", 45, .8, []string{"Chef's Knife", "Paring Knife", "Bread Knife", "Santoku", "Cleaver", "Boning Knife", "Knife Block", "Sharpener"}, blades, kitchenUses},
		{"Headphones", 89, .8, []string{"Headphones", "Earbuds", "Headset", "In-Ear Monitors", "Noise-Cancelling Headphones", "Neckband Earphones"}, shells, deskUses},
		{"Backpacks", 65, .6, []string{"Backpack", "Daypack", "Rucksack", "Roll-Top Pack", "Laptop Backpack", "Sling Bag", "Hydration Pack"}, fabrics, travelUses},
		{"Running Shoes", 95, .4, []string{"Running Shoe", "Trail Shoe", "Racing Flat", "Track Spike", "Recovery Slide", "Stability Trainer"}, uppers, sportUses},
		{"Table Lamps", 49, .7, []string{"Table Lamp", "Desk Lamp", "Reading Light", "Bedside Lamp", "Clip Lamp", "Banker's Lamp"}, lampBodies, homeUses},
		{"Coffee", 14, .4, []string{"Espresso Beans", "Filter Roast", "Single Origin Beans", "Decaf Beans", "Ground Coffee", "Cold Brew Blend"}, origins, tableUses},
		{"Tea", 9, .4, []string{"Green Tea", "Earl Grey", "Oolong", "Rooibos", "Breakfast Tea", "Jasmine Pearls", "Herbal Infusion"}, origins, tableUses},
		{"Notebooks", 12, .5, []string{"Notebook", "Journal", "Sketchbook", "Pocket Notebook", "Planner", "Dotted Journal"}, papers, deskUses},
		{"Office Chairs", 219, .6, []string{"Office Chair", "Task Chair", "Drafting Chair", "Kneeling Chair", "Saddle Stool", "Meeting Chair"}, chairBodies, deskUses},
		{"Bed Linen", 59, .6, []string{"Duvet Cover", "Fitted Sheet", "Pillowcase Pair", "Bedspread", "Flat Sheet", "Quilt"}, linens, homeUses},
		{"Towels", 22, .5, []string{"Bath Towel", "Hand Towel", "Beach Towel", "Tea Towel", "Face Cloth", "Bath Mat"}, linens, homeUses},
		{"Hand Tools", 24, .7, []string{"Claw Hammer", "Screwdriver Set", "Adjustable Spanner", "Hand Saw", "Chisel", "Spirit Level", "Pliers"}, toolSteels, workshopUses},
		{"Power Tools", 129, .6, []string{"Cordless Drill", "Jigsaw", "Orbital Sander", "Circular Saw", "Impact Driver", "Angle Grinder", "Router"}, shells, workshopUses},
		{"Garden Tools", 28, .6, []string{"Spade", "Garden Fork", "Secateurs", "Hoe", "Leaf Rake", "Loppers", "Trowel"}, toolSteels, gardenUses},
		{"Plant Pots", 18, .7, []string{"Plant Pot", "Planter", "Hanging Basket", "Window Box", "Saucer", "Seed Tray"}, ceramics, gardenUses},
		{"Mugs", 13, .4, []string{"Mug", "Espresso Cup", "Travel Mug", "Latte Bowl", "Cup and Saucer", "Enamel Mug"}, ceramics, tableUses},
		{"Glassware", 21, .5, []string{"Wine Glass", "Tumbler", "Carafe", "Champagne Flute", "Beer Glass", "Water Jug"}, glasses, tableUses},
		{"Cutlery", 32, .7, []string{"Dinner Fork Set", "Cutlery Set", "Steak Knife Set", "Teaspoon Set", "Serving Spoon", "Salad Servers"}, cookingMetals, tableUses},
		{"Keyboards", 79, .6, []string{"Mechanical Keyboard", "Wireless Keyboard", "Compact Keyboard", "Split Keyboard", "Number Pad"}, shells, deskUses},
		{"Mice", 39, .6, []string{"Wireless Mouse", "Trackball", "Vertical Mouse", "Gaming Mouse", "Travel Mouse"}, shells, deskUses},
		{"Monitors", 289, .5, []string{"Monitor", "Ultrawide Monitor", "Portable Monitor", "Curved Monitor", "Monitor Arm"}, shells, deskUses},
		{"Cables", 11, .6, []string{"USB-C Cable", "HDMI Cable", "Ethernet Cable", "Audio Cable", "Extension Lead", "Adapter"}, sheaths, deskUses},
		{"Loudspeakers", 149, .8, []string{"Bookshelf Speaker", "Portable Speaker", "Soundbar", "Subwoofer", "Floor Speaker"}, cabinets, homeUses},
		{"Cameras", 449, .7, []string{"Mirrorless Camera", "Compact Camera", "Instant Camera", "Action Camera", "Film Camera"}, shells, travelUses},
		{"Tripods", 79, .7, []string{"Tripod", "Monopod", "Table Tripod", "Video Head", "Ball Head"}, poles, travelUses},
		{"Tents", 239, .6, []string{"Two-Person Tent", "Family Tent", "Bivouac", "Tarp", "Dome Tent", "Tunnel Tent"}, fabrics, outdoorUses},
		{"Sleeping Bags", 119, .6, []string{"Sleeping Bag", "Sleeping Mat", "Camping Quilt", "Travel Pillow", "Bag Liner"}, fillings, outdoorUses},
		{"Camp Stoves", 54, .6, []string{"Gas Stove", "Alcohol Stove", "Camp Kettle", "Mess Tin", "Wood Stove", "Windscreen"}, cookingMetals, outdoorUses},
		{"Bicycle Parts", 36, .8, []string{"Chainring", "Pedals", "Saddle", "Handlebar", "Brake Pads", "Bottle Cage", "Derailleur"}, frames, sportUses},
		{"Bicycle Lights", 29, .5, []string{"Front Light", "Rear Light", "Dynamo Light", "Helmet Light", "Light Set"}, shells, sportUses},
		{"Yoga", 32, .5, []string{"Yoga Mat", "Yoga Block", "Bolster", "Strap", "Meditation Cushion"}, softGoods, sportUses},
		{"Weights", 49, .7, []string{"Kettlebell", "Dumbbell Pair", "Barbell", "Weight Plate", "Resistance Band Set"}, weights, sportUses},
		{"Rain Jackets", 129, .5, []string{"Rain Jacket", "Poncho", "Windbreaker", "Shell Jacket", "Rain Trousers"}, fabrics, outdoorUses},
		{"Knitwear", 79, .5, []string{"Cardigan", "Jumper", "Roll-Neck", "Beanie", "Scarf", "Gloves"}, yarns, wearUses},
		{"Shirts", 49, .5, []string{"Oxford Shirt", "Flannel Shirt", "Overshirt", "T-Shirt", "Polo Shirt", "Linen Shirt"}, cloths, wearUses},
		{"Socks", 12, .4, []string{"Crew Socks", "Hiking Socks", "Ankle Socks", "Knee Socks", "Bed Socks"}, yarns, wearUses},
		{"Watches", 189, .9, []string{"Field Watch", "Diving Watch", "Chronograph", "Dress Watch", "Pocket Watch", "Watch Strap"}, watchCases, wearUses},
		{"Wallets", 39, .6, []string{"Wallet", "Card Holder", "Coin Purse", "Passport Cover", "Key Fob"}, leathers, wearUses},
		{"Suitcases", 149, .6, []string{"Cabin Case", "Check-In Case", "Garment Bag", "Duffel Bag", "Packing Cubes"}, shells, travelUses},
		{"Wooden Toys", 26, .5, []string{"Building Blocks", "Train Set", "Stacking Rings", "Puzzle", "Pull-Along Duck", "Marble Run"}, woods, childUses},
		{"Board Games", 34, .5, []string{"Strategy Game", "Card Game", "Dice Game", "Word Game", "Cooperative Game", "Chess Set"}, papers, childUses},
		{"Candles", 17, .5, []string{"Scented Candle", "Pillar Candle", "Tea Light Set", "Beeswax Candle", "Candle Holder"}, waxes, homeUses},
		{"Rugs", 159, .8, []string{"Rug", "Runner", "Kilim", "Doormat", "Round Rug"}, yarns, homeUses},
		{"Shelving", 89, .7, []string{"Wall Shelf", "Bookcase", "Corner Shelf", "Ladder Shelf", "Floating Shelf"}, woods, homeUses},
		{"Mirrors", 75, .7, []string{"Wall Mirror", "Standing Mirror", "Round Mirror", "Shaving Mirror", "Mirror Cabinet"}, lampBodies, homeUses},
		{"Clocks", 38, .6, []string{"Wall Clock", "Alarm Clock", "Mantel Clock", "Kitchen Timer", "Cuckoo Clock"}, lampBodies, homeUses},
		{"Soap", 7, .4, []string{"Hand Soap", "Shaving Soap", "Soap Bar", "Shampoo Bar", "Bath Salts"}, waxes, homeUses},
		{"Pet Supplies", 21, .7, []string{"Dog Lead", "Cat Bed", "Food Bowl", "Scratching Post", "Dog Collar", "Bird Feeder"}, softGoods, homeUses},
		{"Musical Instruments", 199, 1.0, []string{"Ukulele", "Harmonica", "Kalimba", "Acoustic Guitar", "Cajon", "Tin Whistle", "Tambourine"}, woods, childUses},
	}

	// ranges tell apart the categories beyond one per department.
	ranges = []string{"", "Outlet", "Premium", "Compact", "Refurbished", "Studio", "Travel", "Heritage", "Junior", "Professional"}

	cookingMetals = []string{"cast iron", "stainless steel", "hard-anodised aluminium", "copper", "carbon steel", "enamelled steel"}
	blades        = []string{"carbon steel", "damascus steel", "stainless steel", "ceramic", "high-carbon steel"}
	shells        = []string{"recycled plastic", "aluminium", "polycarbonate", "magnesium alloy", "glass-fibre nylon"}
	fabrics       = []string{"waxed canvas", "ripstop nylon", "recycled polyester", "cordura", "coated cotton"}
	uppers        = []string{"engineered mesh", "recycled knit", "suede", "ripstop", "leather"}
	lampBodies    = []string{"brass", "oak", "powder-coated steel", "ceramic", "smoked glass", "marble"}
	origins       = []string{"Ethiopian", "Colombian", "Guatemalan", "Assam", "Uji", "Sumatran", "Kenyan", "Darjeeling"}
	papers        = []string{"recycled paper", "cotton paper", "linen board", "stone paper", "kraft paper"}
	chairBodies   = []string{"mesh", "wool felt", "leather", "recycled plastic", "moulded plywood"}
	linens        = []string{"organic cotton", "washed linen", "bamboo", "percale", "sateen", "waffle cotton"}
	toolSteels    = []string{"forged steel", "stainless steel", "chrome vanadium", "boron steel", "ash and steel"}
	ceramics      = []string{"stoneware", "porcelain", "terracotta", "bone china", "enamel", "recycled clay"}
	glasses       = []string{"borosilicate glass", "lead-free crystal", "recycled glass", "hand-blown glass"}
	sheaths       = []string{"braided nylon", "silicone", "recycled plastic", "shielded copper"}
	cabinets      = []string{"walnut", "birch plywood", "bamboo", "aluminium", "lacquered board"}
	poles         = []string{"carbon fibre", "aluminium", "basalt fibre", "beech"}
	fillings      = []string{"goose down", "hollow fibre", "merino", "recycled polyester", "duck down"}
	frames        = []string{"forged aluminium", "carbon fibre", "chromoly steel", "titanium"}
	softGoods     = []string{"natural rubber", "cork", "organic cotton", "hemp", "recycled felt"}
	weights       = []string{"cast iron", "rubber-coated steel", "chromed steel", "natural latex"}
	yarns         = []string{"merino wool", "lambswool", "alpaca", "recycled cotton", "cashmere", "jute"}
	cloths        = []string{"organic cotton", "linen", "brushed flannel", "hemp", "tencel"}
	watchCases    = []string{"stainless steel", "titanium", "bronze", "ceramic", "recycled steel"}
	leathers      = []string{"vegetable-tanned leather", "cork leather", "waxed canvas", "bridle leather"}
	woods         = []string{"beech", "oak", "walnut", "ash", "birch", "bamboo", "maple"}
	waxes         = []string{"soy", "beeswax", "olive oil", "lavender", "cedarwood", "sea salt"}

	kitchenUses  = []string{"everyday cooking", "slow Sunday roasts", "small kitchens", "induction hobs", "batch cooking", "keen home cooks"}
	deskUses     = []string{"long working days", "shared desks", "home offices", "study", "video calls", "focused work"}
	travelUses   = []string{"weekend trips", "commuting", "hand luggage", "long-haul flights", "city breaks", "life on the road"}
	sportUses    = []string{"early morning training", "wet winter roads", "race day", "beginners", "daily practice", "long distances"}
	homeUses     = []string{"small flats", "the living room", "guest rooms", "quiet corners", "family homes", "rented homes"}
	tableUses    = []string{"slow breakfasts", "dinner parties", "the office kitchen", "afternoon breaks", "everyday tables"}
	workshopUses = []string{"home repairs", "joinery", "tight spaces", "site work", "a first tool box", "restoration"}
	gardenUses   = []string{"raised beds", "heavy clay soil", "balconies", "allotments", "roses and shrubs", "small greenhouses"}
	outdoorUses  = []string{"three-season camping", "alpine huts", "wet summers", "long-distance trails", "festival weekends", "wild swimming"}
	wearUses     = []string{"cold mornings", "layering", "everyday wear", "formal days", "the weekend", "windy coasts"}
	childUses    = []string{"rainy afternoons", "small hands", "family evenings", "classrooms", "ages six and up", "patient beginners"}

	makers = []string{
		"Alder & Finch", "Northmoor", "Halden", "Castellan", "Brightwater", "Fjordline", "Kestrel", "Osterley", "Tamsin Grey", "Wexcombe",
		"Larkfield", "Moss & Stone", "Pellworth", "Quillan", "Ravensholm", "Saltmarsh", "Thornbury", "Umber", "Vantor", "Whitlow",
		"Arkady", "Bellwether", "Corvane", "Duneford", "Elmstead", "Farrow Lane", "Glasswing", "Hartmoor", "Ironvale", "Junip",
		"Kinross", "Lumen Works", "Marlowe", "Nordhavn", "Oakhurst", "Pinecrest", "Riverton", "Solberg", "Tidewell", "Vale",
	}
	looks   = []string{"Classic", "Compact", "Lightweight", "Heavy-Duty", "Folding", "Slim", "Everyday", "Handmade", "Adjustable", "Vintage", "Modern", "Insulated", "Deluxe", "Essential", "Quiet", "Reversible"}
	colours = []string{"black", "white", "forest green", "navy", "charcoal", "sand", "rust", "ochre", "slate blue", "natural", "burgundy", "olive"}
	praises = []string{
		"It is built to be repaired, with spare parts available for ten years.",
		"The finish ages well and asks for little care.",
		"Its balance and weight make it a pleasure to use.",
		"Every piece is checked by hand before it leaves the workshop.",
		"A second look at the details shows where the money went.",
		"The design has hardly changed in thirty years, for good reason.",
		"It packs flat and sets up in less than a minute.",
		"Customers praise how well it holds up after years of use.",
		"The makers pay fair wages and publish their suppliers.",
		"It replaces an older model that many of our customers still own.",
	}
	cares = []string{
		"Wipe clean with a damp cloth.",
		"Dishwasher safe, though washing by hand keeps it longer.",
		"Machine wash cold and dry flat.",
		"Oil twice a year.",
		"Keep dry and out of direct sunlight.",
		"Two-year guarantee.",
		"Five-year guarantee against defects.",
		"Delivered in plastic-free packaging.",
		"Returns are free within thirty days.",
	}
)
