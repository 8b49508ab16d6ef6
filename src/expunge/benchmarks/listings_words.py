"""The words that `listings` is made of: shops, towns, what each category sells, and the phrasings of its facts.

Holds tables only; how they become a world is in `listings.py`. Adding, removing or moving a word changes every world.
Towns, shops and brands are invented, so that no pretrained model knows a listing before it has seen it.
"""

from typing import NamedTuple


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


class Category(NamedTuple):
    """The goods of one category. Every noun goes with every material, style, mark, part and extra of its category."""

    nouns: tuple[str, ...]
    """Singular, lower case."""
    materials: tuple[str, ...]
    styles: tuple[str, ...]
    brands: tuple[str, ...]
    colours: tuple[str, ...]
    own: tuple[tuple[str, tuple[str, ...]], ...]
    """Attributes of this category alone: name and values."""
    axes: tuple[str, str]
    """How its two dimensions are named, as in "31 cm tall and 18 cm across"."""
    lengths: tuple[range, range]
    """In centimetres. The two are disjoint, so that neither number is ever read for the other."""
    grams: range
    euros: range
    marks: tuple[str, ...]
    """Faults of a used piece; singular or uncountable, and "on" goes after them."""
    parts: tuple[str, ...]
    extras: tuple[str, ...]
    """Extras of a new piece."""


CATEGORIES = {
    "Kitchenware": Category(
        nouns=_list("saucepan, colander, kettle, casserole, milk jug, roasting tin, mixing bowl, cake tin, frying pan"),
        materials=_list("stainless steel, enamel, copper, aluminium, cast iron"),
        styles=_list("classic, stackable, heavy-duty, compact, farmhouse, professional"),
        brands=_list("Tollmark, Brennick, Casa Verrin, Hobley, Ostra, Kettlewyn, Pannier & Moss"),
        colours=_list("cream, sage green, brick red, slate grey, cobalt blue, black"),
        own=(
            ("Capacity", _list("0.8 litres, 1.2 litres, 1.5 litres, 2 litres, 2.5 litres, 3 litres")),
            ("Hob", _list("gas only, gas and electric, all hobs")),
        ),
        axes=("across", "deep"),
        lengths=(range(20, 39), range(6, 19)),
        grams=range(450, 3200, 50),
        euros=range(12, 96),
        marks=_list("a small dent, light scratching, a chip in the coating, a dull patch, faint staining, a bent edge"),
        parts=_list("the rim, the base, the handle side, the inner wall, the outer wall, the pouring edge"),
        extras=_list("a spare handle, a cotton cover, a cork trivet, a tin of polish, a wooden spoon, a wall hook"),
    ),
    "Garden Tools": Category(
        nouns=_list("digging fork, border spade, hand trowel, leaf rake, edging iron, bulb planter, dibber, hoe"),
        materials=_list("carbon steel, stainless steel, forged iron, bronze, boron steel"),
        styles=_list("long-handled, traditional, lightweight, narrow, sturdy, heritage"),
        brands=_list("Thornacre, Haldane & Rook, Spadewell, Grunley, Mossgate, Fernhollow, Terrado"),
        colours=_list("forest green, straw, oxblood, black, mustard, grey"),
        own=(
            ("Handle", _list("ash, beech, oak, fibreglass, bamboo")),
            ("Soil", _list("light soil, clay, stony ground, raised beds")),
        ),
        axes=("long", "wide"),
        lengths=(range(60, 139), range(7, 29)),
        grams=range(300, 2600, 50),
        euros=range(14, 88),
        marks=_list("surface rust, a shallow nick, old paint, a small repair, slight bending, a worn patch"),
        parts=_list("the shaft, the grip, the working edge, the socket, the collar, the back"),
        extras=_list(
            "a leather sheath, a sharpening stone, a hanging loop, a bottle of linseed oil, a seed packet, a twine reel"
        ),
    ),
    "Ceramics": Category(
        nouns=_list("vase, fruit bowl, teapot, serving dish, planter, water jug, storage jar, cake stand, pitcher"),
        materials=_list("stoneware, porcelain, terracotta, earthenware, bone china"),
        styles=_list("hand-thrown, fluted, ribbed, speckled, hand-painted, tall"),
        brands=_list("Ellerby Pottery, Kilnfold, Marrow Clay, Saltern, Brae & Daughter, Oxwell, Luno"),
        colours=_list("celadon, oatmeal, ink blue, chalk white, rust, moss green"),
        own=(
            ("Glaze", _list("matt, glossy, salt glaze, crackle, ash glaze, unglazed outside")),
            ("Firing", _list("wood kiln, gas kiln, electric kiln")),
        ),
        axes=("tall", "across"),
        lengths=(range(24, 47), range(9, 23)),
        grams=range(380, 3600, 20),
        euros=range(15, 145),
        marks=_list("a hairline crack, a tiny chip, light crazing, a glaze skip, a restored spot, faint discolouring"),
        parts=_list("the rim, the foot, the shoulder, the inside wall, the underside, the belly"),
        extras=_list("a felt pad, a signed card, a linen wrap, a cork mat, a tube of repair wax, a wooden stand"),
    ),
    "Bicycles": Category(
        nouns=_list("city bike, touring bike, folding bike, racing bike, cargo bike, mountain bike, roadster, tandem"),
        materials=_list("steel, aluminium, chromoly, stainless steel"),
        styles=_list("lugged, hand-built, sturdy, lightweight, all-weather, classic"),
        brands=_list("Velmonte, Rovarr, Pedersholm, Lyra Cycles, Ironwheel, Castellon, Norrbike"),
        colours=_list("racing green, silver, midnight blue, orange, pearl white, burgundy"),
        own=(
            ("Gears", _list("single speed, 3, 7, 8, 14, 21, 24")),
            ("Brakes", _list("rim brakes, drum brakes, coaster brake, roller brakes")),
        ),
        axes=("long", "high at the bars"),
        lengths=(range(158, 199), range(92, 119)),
        grams=range(9200, 19800, 100),
        euros=range(120, 1180, 5),
        marks=_list("a paint chip, light rust, a deep scratch, a faded transfer, a small dent, touched-up paint"),
        parts=_list("the top tube, the chainstay, the fork, the head tube, the rear rack, the seat post"),
        extras=_list("a frame lock, a bell, a spare inner tube, a tool roll, a saddle cover, a hand pump"),
    ),
    "Lamps": Category(
        nouns=_list(
            "desk lamp, bedside lamp, reading lamp, table lamp, lantern, piano lamp, banker's lamp, writing lamp"
        ),
        materials=_list("brass, opal glass, steel, walnut, aluminium, paper"),
        styles=_list("adjustable, dimmable, art deco, industrial, mid-century, mushroom"),
        brands=_list("Lumarre, Dusk & Co, Ravello Light, Halden, Wickfield, Fotona, Glimstad"),
        colours=_list("ivory, smoke grey, bottle green, amber, matt black, terracotta"),
        own=(
            ("Fitting", _list("E14, E27, B22, G9, GU10")),
            ("Switch", _list("on the cable, rotary, pull cord, touch, foot switch")),
        ),
        axes=("high", "wide at the shade"),
        lengths=(range(38, 72), range(14, 37)),
        grams=range(700, 5200, 50),
        euros=range(18, 230),
        marks=_list(
            "light tarnish, a small dent, a hairline scratch, slight yellowing, a rubbed spot, a repaired seam"
        ),
        parts=_list("the shade, the stem, the base, the joint, the collar, the switch housing"),
        extras=_list("a warm bulb, a spare fuse, a fabric cable, a travel plug, a dust cloth, a second shade ring"),
    ),
    "Clocks": Category(
        nouns=_list("wall clock, mantel clock, alarm clock, carriage clock, kitchen clock, station clock, desk clock"),
        materials=_list("oak, brass, bakelite, mahogany, enamelled steel, marble"),
        styles=_list("eight-day, silent, chiming, skeleton, railway, sunburst"),
        brands=_list("Tempelhorn, Quarrier, Orlok & Sohn, Minuta, Bellchamber, Hourglass Row, Zeitmer"),
        colours=_list("honey, dark brown, ivory, jade, black, pale blue"),
        own=(
            ("Movement", _list("quartz, hand-wound, electric, battery, pendulum")),
            ("Numerals", _list("Roman, Arabic, batons, dots")),
        ),
        axes=("tall", "deep"),
        lengths=(range(14, 53), range(4, 13)),
        grams=range(280, 4800, 40),
        euros=range(16, 320),
        marks=_list("a fine scratch, a worn gilt spot, a small crack, light foxing, a filled hole, old glue"),
        parts=_list("the dial, the case, the bezel, the back plate, the left side, the top edge"),
        extras=_list("a winding key, a fresh battery, a hanging nail, a spare hand, a level, a tin of clock oil"),
    ),
    "Bags & Luggage": Category(
        nouns=_list("weekend bag, satchel, rucksack, suitcase, briefcase, duffel bag, camera bag, garment bag"),
        materials=_list("leather, waxed canvas, felt, nylon, cotton twill, linen"),
        styles=_list("slim, expandable, military, carry-on, hand-stitched, vintage-style"),
        brands=_list("Harlan Pike, Portmane, Sattel, Vagabond Mill, Corriere, Underley, Trekhaus"),
        colours=_list("chestnut, olive, navy, charcoal, tan, wine red"),
        own=(
            ("Closure", _list("zip, buckles, drawstring, magnetic snap, roll top")),
            ("Lining", _list("cotton, tartan, unlined, water-repellent, suede")),
        ),
        axes=("wide", "deep"),
        lengths=(range(32, 69), range(10, 29)),
        grams=range(520, 3900, 20),
        euros=range(22, 285),
        marks=_list("light scuffing, an ink spot, a small tear, a loose stitch, a water stain, a dark patch"),
        parts=_list("the front pocket, the base, the strap, the flap, the lining, the back corner"),
        extras=_list("a dust bag, a luggage tag, a shoulder pad, a tin of balm, a spare buckle, a rain cover"),
    ),
    "Home Textiles": Category(
        nouns=_list("blanket, tablecloth, bedspread, cushion cover, wall hanging, runner, quilt, throw"),
        materials=_list("lambswool, linen, cotton, alpaca, hemp, mohair"),
        styles=_list("hand-woven, striped, checked, embroidered, waffle, fringed"),
        brands=_list("Loomgate, Shearling Hall, Weft & Willow, Tessile, Nordvev, Burrfield, Anselma"),
        colours=_list("indigo, ecru, madder red, ochre, dove grey, pine green"),
        own=(
            ("Weave", _list("twill, plain, herringbone, jacquard, basket")),
            ("Care", _list("hand wash, machine wash at 30, dry clean, cold wash")),
        ),
        axes=("long", "wide"),
        lengths=(range(120, 239), range(42, 109)),
        grams=range(260, 2400, 20),
        euros=range(14, 175),
        marks=_list("a mended hole, slight fading, a pulled thread, a pale stain, light pilling, a darned patch"),
        parts=_list("the hem, one corner, the reverse, the centre, the left border, the fold line"),
        extras=_list("a storage bag, a cedar block, a mending kit, a wash net, a ribbon tie, a swatch card"),
    ),
    "Audio": Category(
        nouns=_list(
            "transistor radio, record player, cassette deck, amplifier, bookshelf speaker, kitchen radio, tuner"
        ),
        materials=_list("walnut veneer, plastic, aluminium, teak, steel"),
        styles=_list("portable, solid-state, valve, retro, two-band, studio"),
        brands=_list("Sonora Nord, Kessel, Audiphon, Wavecrest, Telmar, Fidelio Brandt, Orphic"),
        colours=_list("silver, black, cherry, cream, gunmetal, two-tone grey"),
        own=(
            ("Power", _list("mains, batteries, mains and batteries, 12 volts")),
            ("Connector", _list("phono, DIN, jack, aerial socket only, terminals")),
        ),
        axes=("wide", "high"),
        lengths=(range(27, 49), range(11, 26)),
        grams=range(900, 9600, 100),
        euros=range(25, 420, 5),
        marks=_list("a small crack, a light scratch, a sticky patch, a bleached area, an old label, a shallow dent"),
        parts=_list("the front panel, the lid, the dial cover, the rear casing, the volume knob, the grille frame"),
        extras=_list("a new belt, a mains lead, a copy of the manual, a spare fuse, a phono cable, a wire aerial"),
    ),
    "Small Furniture": Category(
        nouns=_list("side table, stool, bookcase, bedside cabinet, plant stand, bench, magazine rack, shoe rack"),
        materials=_list("oak, pine, rattan, beech, elm, cherry"),
        styles=_list("tapered, Shaker, slatted, turned-leg, low, narrow"),
        brands=_list("Holzbrook, Joinery Lane, Tamsel, Bodkin & Ash, Norelund, Carverly, Plankton Works"),
        colours=_list("natural, white, dark stain, duck-egg blue, black, honey"),
        own=(
            ("Finish", _list("oiled, waxed, lacquered, soaped, untreated")),
            ("Assembly", _list("none needed, four screws, flat-packed, legs screw in")),
        ),
        axes=("high", "deep"),
        lengths=(range(41, 92), range(22, 40)),
        grams=range(2400, 16500, 100),
        euros=range(24, 340),
        marks=_list("a ring stain, a pale scratch, a filled knot, old woodworm, a bruised spot, uneven polish"),
        parts=_list("the top, the front left leg, the back rail, the right side, the lower shelf, the underside"),
        extras=_list("felt glides, a tin of wax, a hex key, a wall bracket, a touch-up pen, a bag of dowels"),
    ),
}

USED = _list("Used - very good, Used - good, Used - fair, Refurbished")
NEW = _list("New, New - open box, New - end of line")

SHOP_FIRST = _words("""
    Amber Anchor Barley Bramble Brass Bridge Cobble Copper Corner Cricket Drift Elder Ember Field Flint Foxglove Gable
    Harbour Hazel Heather Juniper Kestrel Lantern Linden Marsh Meadow Nettle North Orchard Otter Pebble Quarry Raven
    River Rowan Saffron Sparrow Tinder Willow Winter
""")
SHOP_SECOND = _words("""
    Attic Barn Cabinet Cellar Cottage Court Cupboard Dock Drawer Gate House Lane Loft Mill Parlour Pantry Row Shed
    Stable Station Street Studio Trunk Yard
""")
SHOP_ENDS = _list("Goods, Trading, & Sons, Supplies, Market, Finds, & Daughters, Depot, Exchange, Emporium")

TOWN_STEMS = _words("""
    Alder Birch Calder Dray Eskel Farn Gosling Hather Ilver Keld Lang Milver Nether Orring Pender Quarl Rother Stav
    Tarring Ulver Wend Yarrow
""")
TOWN_ENDS = _words("by combe den field holt minster ness thorpe wick worth")

USED_SOURCES = _list("""
    a house clearance in, a farm sale near, an estate auction in, a village hall sale in, a church bazaar in,
    a hotel closing sale in, a school auction in, an antiques fair near, a charity auction in, a barn sale outside,
    a flea market in, a museum sale in
""")
NEW_SOURCES = _list("""
    a family workshop in, a two-person studio in, a small factory near, a makers' cooperative in, a design school in,
    a third-generation firm in, a community workshop in, an independent maker near, a training workshop in,
    a small company outside
""")
SECOND_EXTRAS = _list("""
    a printed care card, a two-year guarantee, a recycled gift box, a return label, a handwritten note, a paper manual,
    a cleaning cloth, a fitting guide
""")
NUMBER_LETTERS = _words("AX BK CR DL EF GT HN JV KR LM MS NB PQ RD SV TW UX VL WK ZE")

TITLES = _list("""
    {brand} {noun} - {colour}, {style} {material} {noun}, {brand} {style} {noun} in {colour},
    {colour} {material} {noun}, {material} {noun} by {brand}, {brand} {material} {noun}, {style} {noun} - {material},
    {style} {colour} {noun}
""")

SHAPES = (
    "origin year|size detail|price dispatch",
    "origin year|size detail|number price",
    "origin year|weight detail|price dispatch",
    "origin year|weight detail|number dispatch",
    "origin year|size weight|price dispatch",
    "origin year|size weight|number price",
    "origin year|weight|number dispatch",
    "origin year|size|number price",
    "origin year|detail|price dispatch",
    "origin year|detail|number dispatch",
    "origin year|weight|price",
    "origin year|size|dispatch",
    "origin year|detail|price",
    "origin year|detail price dispatch",
    "origin year|number price",
    "origin year|price dispatch",
    "origin number|size detail|price dispatch",
    "origin number|weight detail|price",
    "origin number|size weight|dispatch",
    "origin number|year detail|price dispatch",
    "origin number|year detail|dispatch",
    "origin number|size|price dispatch",
    "origin number|detail|price",
    "origin number|detail price dispatch",
)
"""Which facts a description tells, sentence by sentence; a sentence's facts are its key in the phrasings below."""

_COMMON = {
    "size": (
        "It is {size}.",
        "The size by our own tape: {size}.",
        "We measured it, and it is {size}.",
        "Please check that {size} will fit.",
        "According to the maker it is {size}.",
    ),
    "weight": (
        "It weighs {weight}.",
        "The weight is {weight} without the packaging.",
        "Our scales say {weight}.",
        "It comes to {weight}, which we checked ourselves.",
        "At {weight} it is easy enough to lift.",
    ),
    "price": (
        "The price is {price}.",
        "We are asking {price} for it, postage extra.",
        "Yours for {price}.",
        "It costs {price} including packing.",
        "At {price} it is one of our best offers this season.",
    ),
    "dispatch": (
        "Dispatch takes {dispatch}.",
        "We post it within {dispatch} of payment.",
        "Please allow {dispatch} for packing and dispatch.",
        "It leaves our store within {dispatch}.",
        "Orders for it go out after {dispatch}.",
    ),
    "size weight": (
        "By our tape it is {size}, and it weighs {weight}.",
        "Without packaging it weighs {weight} and is {size}.",
        "We measured it at {size} and weighed it at {weight}.",
        "The scales say {weight}, the tape measure {size}.",
        "To help you plan the space, it is {size} and weighs {weight}.",
        "Size and weight as checked by us: {size}, {weight}.",
        "It comes to {weight} on the scales and is {size}.",
    ),
    "price dispatch": (
        "The price is {price}, and we post it within {dispatch}.",
        "Yours for {price}, dispatched within {dispatch} of payment.",
        "We ask {price} and need {dispatch} to pack and send it.",
        "Please allow {dispatch} for dispatch; the price of {price} is fixed.",
        "It costs {price} including packing and goes out after {dispatch}.",
        "For {price} it leaves our store within {dispatch}.",
        "Dispatch takes {dispatch}, and at {price} we cannot go any lower.",
    ),
    "number dispatch": (
        "The model number is {number}, and dispatch takes {dispatch}.",
        "Quote reference {number} when you write to us; we send it within {dispatch}.",
        "Listed by the maker as {number}, it is packed and posted within {dispatch}.",
        "Please allow {dispatch} for dispatch and check the label for {number}.",
        "It goes out after {dispatch}, with {number} printed on the label.",
        "Our stock label says {number}, and orders leave us within {dispatch}.",
    ),
    "number price": (
        "The model number is {number} and the price is {price}.",
        "You will find {number} on the label, and we are asking {price}.",
        "Sold as model {number} for {price}, postage extra.",
        "We want {price} for it; the maker's reference is {number}.",
        "At {price} this is the cheapest {number} we have had in stock.",
        "Our price is {price}, and the label on the back says {number}.",
    ),
}

USED_PHRASINGS = _COMMON | {
    "origin year": (
        "This {noun} came to us from {origin} and was made in {year}.",
        "Bought from {origin}, the {noun} dates from {year}.",
        "Made in {year}, this {noun} was found at {origin}.",
        "We picked up this {noun} at {origin}, and its papers give {year} as the year of make.",
        "Originally sold in {year}, the {noun} reached us by way of {origin}.",
        "From {origin} comes this {noun}, which goes back to {year}.",
        "The {noun} turned up at {origin}; as far as we can tell it is from {year}.",
    ),
    "origin number": (
        "This {noun} was found at {origin} and still carries the model number {number}.",
        "Bought from {origin}, the {noun} is marked {number}.",
        "Model {number}: this {noun} came to us from {origin}.",
        "We rescued this {noun}, model {number}, from {origin}.",
        "From {origin} comes this {noun}, listed by its maker as {number}.",
        "The label reads {number}, and the {noun} turned up at {origin}.",
    ),
    "detail": (
        "There is {detail}.",
        "The only fault we found is {detail}.",
        "Look out for {detail}, which the photos show.",
        "It is in good shape apart from {detail}.",
        "A previous owner left {detail}, but nothing worse.",
    ),
    "size detail": (
        "It is {size}, with {detail}.",
        "Expect {detail}; otherwise it is sound, and it is {size}.",
        "It is {size}, and the only fault we found is {detail}.",
        "As the photos show there is {detail}; we measured it at {size}.",
        "The price allows for {detail}, and the size is right for most homes: {size}.",
        "Overall it is {size}, and {detail} is all that gives its age away.",
    ),
    "weight detail": (
        "It weighs {weight} on our scales and shows {detail}.",
        "Apart from {detail} it is in good shape, and it weighs {weight}.",
        "On the scales it comes to {weight}, and the one blemish is {detail}.",
        "We noticed {detail} and nothing else; unpacked it weighs {weight}.",
        "There is {detail}, which we left alone, and the weight is {weight}.",
        "With a weight of {weight} it feels solid, despite {detail}.",
    ),
    "year detail": (
        "It was made in {year} and, fairly for its age, has {detail}.",
        "Since {year} it has picked up {detail}, but nothing worse.",
        "The maker's mark points to {year}; look out for {detail}.",
        "Apart from {detail}, you would not think that it is from {year}.",
        "First sold in {year}, it now shows {detail}, which we left alone.",
        "We date it to {year}, and the photos show {detail}.",
    ),
    "detail price dispatch": (
        "There is {detail}, so we ask only {price}, and we post it within {dispatch} of payment.",
        "It has been cleaned, {detail} remains, and for {price} we send it out within {dispatch}.",
        "Because of {detail} the price is down to {price}; please allow {dispatch} for packing and dispatch.",
        "Yours for {price}, with {detail} that you can see in the photos, and dispatched within {dispatch}.",
        "We need {dispatch} to pack it well, and {price} is a fair price given {detail}.",
    ),
}

NEW_PHRASINGS = _COMMON | {
    "origin year": (
        "This {noun} is made by {origin} to a design from {year}.",
        "Designed in {year}, the {noun} comes from {origin}.",
        "The {noun} is produced by {origin}, which has made it since {year}.",
        "Straight from {origin}, this {noun} follows a pattern drawn in {year}.",
        "Since {year} this {noun} has been made by {origin}.",
        "We get this {noun} from {origin}, where the design has not changed since {year}.",
        "First shown in {year}, the {noun} is still made by {origin}.",
    ),
    "origin number": (
        "This {noun} is made by {origin} and sold as model {number}.",
        "Ordered directly from {origin}, the {noun} carries the model number {number}.",
        "Look for {number} on the label: this {noun} comes from {origin}.",
        "The {noun} was delivered to us by {origin} under the reference {number}.",
        "Straight from {origin}, this {noun} is listed as {number} in their catalogue.",
        "We get the {noun} from {origin}, and its full model name is {number}.",
    ),
    "detail": (
        "It comes with {detail}.",
        "In the box you will also find {detail}.",
        "We include {detail} at no extra cost.",
        "The set is complete with {detail}.",
        "You also receive {detail}.",
    ),
    "size detail": (
        "It is {size} and comes with {detail}.",
        "In the box you will find {detail}; the {noun} itself is {size}.",
        "We include {detail}, and it is {size} when set up.",
        "Packed with {detail}, it is {size} once unwrapped.",
        "Each one is {size} and ships together with {detail}.",
        "You also receive {detail}, and the size given by the maker is {size}.",
    ),
    "weight detail": (
        "It weighs {weight} and comes with {detail}.",
        "In the box you will find {detail}; the {noun} itself weighs {weight}.",
        "We include {detail}, and the weight without packaging is {weight}.",
        "Each one weighs {weight} and ships together with {detail}.",
        "With a weight of {weight} it feels solid, and {detail} are part of the set.",
        "You also receive {detail}, and the weight given by the maker is {weight}.",
    ),
    "year detail": (
        "The design goes back to {year}, and {detail} are included.",
        "First shown in {year}, it now comes with {detail}.",
        "It follows the pattern of {year} and is packed with {detail}.",
        "You also receive {detail}; the design itself is from {year}.",
        "Unchanged since {year}, it is delivered with {detail}.",
        "We include {detail} with this design, which won its maker a prize in {year}.",
    ),
    "detail price dispatch": (
        "It comes with {detail}, costs {price} in our shop and is posted within {dispatch} of payment.",
        "For {price} you get it together with {detail}, dispatched from our store within {dispatch}.",
        "The price of {price} includes {detail}; please allow {dispatch} for packing and dispatch.",
        "Yours for {price} with {detail} in the box, and on its way to you within {dispatch}.",
        "We need {dispatch} to pack and send it, and {price} covers {detail} as well.",
    ),
}
